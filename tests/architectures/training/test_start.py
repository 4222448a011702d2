"""What starts from the first batch, entry by entry, and what a configuration's loader says."""

import logging
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput

from sae_lens_bipolar.architectures.registry import ARCHITECTURES
from sae_lens_bipolar.architectures.sparse_topk import (
    SparseTopKTrainingSAE,
    SparseTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.training.start import mean_without_sinks

X = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, -2.0], [0.0, 21.0], [20.0, 0.0]])  # median 3


def make(**options: Any) -> SparseTopKTrainingSAE:
    options = {"d_in": 2, "d_sae": 8, "k": 2, **options}
    return SparseTopKTrainingSAE(SparseTopKTrainingSAEConfig(**options))


def step(sae: SparseTopKTrainingSAE, x: torch.Tensor, number: int) -> None:
    sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={},
            dead_neuron_mask=None,
            n_training_steps=number,
            is_logging_step=False,
        )
    )


def test_a_mean_leaves_out_what_is_above_ten_medians_and_nothing_else() -> None:
    torch.testing.assert_close(mean_without_sinks(X), X.mean(0))
    at, above = X.clone(), X.clone()
    at[4, 0], above[4, 0] = 30.0, 30.1
    torch.testing.assert_close(mean_without_sinks(at), torch.tensor([6.2, 4.4]))
    torch.testing.assert_close(mean_without_sinks(above), torch.tensor([0.25, 5.5]))


@pytest.mark.parametrize(
    ("start", "number", "before", "after"),
    [
        ("mean", 0, 0.0, [4.2, 4.4]),
        ("mean", 1, 0.0, [0.0, 0.0]),  # a run that is resumed
        ("mean", 0, 0.5, [0.5, 0.5]),  # trained or set before
        ("zeros", 0, 0.0, [0.0, 0.0]),
    ],
)
def test_b_dec_starts_where_the_configuration_says(
    start: str, number: int, before: float, after: list[float]
) -> None:
    sae = make(b_dec_init=start)
    sae.b_dec.data.fill_(before)
    step(sae, X, number)
    torch.testing.assert_close(sae.b_dec.data, torch.tensor(after))


def test_only_what_is_no_field_is_said_to_be_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    given = make().cfg.to_dict()
    assert given["architecture"] == "sparse_topk"
    with caplog.at_level(logging.WARNING):
        assert SparseTopKTrainingSAEConfig.from_dict(given) == make().cfg
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        SparseTopKTrainingSAEConfig.from_dict({**given, "b_dec_inti": "zeros", "a": 1})
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("sparse_topk has no option a, which is passed over")
    assert second.startswith("sparse_topk has no option b_dec_inti, which is passed over")
    assert "'b_dec_init'" in second


@pytest.mark.parametrize("name", [n for n, r in ARCHITECTURES.items() if r.training and r.at_l0])
def test_rows_of_the_decoder_start_near_length_1(name: str) -> None:
    record = ARCHITECTURES[name]
    assert record.training
    assert record.at_l0
    cfg = record.training[1](d_in=16, d_sae=32, **record.at_l0(32, 4))
    sae: Any = record.training[0](cfg)
    shared = {"bi_jumprelu", "batch_abstopk", "matryoshka_batch_abstopk"}  # among tokens
    length = 0.6 if name in shared else 1.0
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((32,), length))
    torch.testing.assert_close(sae.W_enc.t(), sae.W_dec)


def share_alive(length: float) -> float:
    """Latents that fire after 200 steps on sparse data that lie around a large mean."""
    torch.manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)
    sae: Any = SparseTopKTrainingSAE(
        SparseTopKTrainingSAEConfig(d_in=32, d_sae=512, k=4, decoder_init_norm=length)
    )
    adam = torch.optim.Adam(sae.parameters(), lr=1e-3)
    for number in range(200):
        x = 5 + (torch.rand(256, 64) < 0.05) * torch.randn(256, 64) @ truth
        coefficients: dict[str, float] = {}
        sae.training_forward_pass(
            TrainStepInput(x, coefficients, None, number, False)
        ).loss.backward()
        adam.step()
        adam.zero_grad()
    x = 5 + (torch.rand(8192, 64) < 0.05) * torch.randn(8192, 64) @ truth
    return sae.encode(x).ne(0).any(0).float().mean().item()


def test_latents_that_start_at_length_1_stay_alive() -> None:
    """Without an auxiliary loss; at SAELens's 0.1 the first to fire keep the places."""
    assert share_alive(1.0) > share_alive(0.1) + 0.1
