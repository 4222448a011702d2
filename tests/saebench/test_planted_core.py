"""Core on latents that are alive on their negative side only.

sae_bench 0.6.0 counts `> 0` as firing (evals/core/main.py:604) and sums signed activations as L1
(:562). The planted SAE has one latent per word, and every word of the text makes exactly one fire
with 2: L0 = 1, L1 = 2, every latent alive. Its flipped twin fires with -2 instead.
"""

import pytest
import torch

from sae_lens_bipolar.saebench import BenchConfig
from tests.hub.fake.server import HubServer
from tests.saebench.planted_model import planted_model, planted_sae, run_twins, save_planted, value
from tests.saebench.suite_data import encyclopedia


@pytest.fixture(scope="module")
def rows(suite_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("core")
    prose = " ".join(text for text in encyclopedia(0) if not text.startswith(" ="))
    words = sorted({word.strip(".") for word in prose.split()} | {"."})
    directions = torch.eye(len(words))
    model, tokenizer = planted_model(dict(zip(words, 2 * directions, strict=True)))
    sae = planted_sae(save_planted(folder / "model", model, tokenizer), directions, directions, k=1)
    config = BenchConfig(
        suites=("core",),
        context_length=32,
        llm_batch_size=8,
        core_reconstruction_batches=2,
        core_sparsity_batches=4,
    )
    return run_twins(folder, sae, range(len(words)), config)


def test_signed_takes_latents_alive_on_the_negative_side_for_dead(
    rows: list[dict[str, object]],
) -> None:
    assert value(rows, "upright", "signed", "frac_alive") == 1
    assert value(rows, "flipped", "signed", "frac_alive") == 0
    assert value(rows, "upright", "signed", "l1") == pytest.approx(2)
    assert value(rows, "flipped", "signed", "l1") == pytest.approx(-2)


def test_split_sees_one_live_pole_a_latent_whichever_it_is(rows: list[dict[str, object]]) -> None:
    for sae in ("upright", "flipped"):
        assert value(rows, sae, "split", "frac_alive") == 0.5
        assert value(rows, sae, "split", "l1") == pytest.approx(2)
        for protocol in ("signed", "split"):
            assert value(rows, sae, protocol, "l0") == pytest.approx(1)
            assert value(rows, sae, protocol, "mse") == pytest.approx(0, abs=1e-9)
            assert value(rows, sae, protocol, "ce_loss_score") == pytest.approx(1)
