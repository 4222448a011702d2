import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from sae_lens_bipolar.errors import ActivationError, DataError
from sae_lens_bipolar.polarity.counting import Census, CensusCounter, census

LATENTS = torch.tensor(
    [
        [1.0, -2.0, 0.0, 0.0],
        [3.0, 4.0, 0.0, -0.5],
        [0.0, -6.0, 0.0, 0.0],
        [2.0, 0.0, 0.0, -1.5],
    ]
)


def counted(*batches: torch.Tensor) -> Census:
    counter = CensusCounter(batches[0].shape[-1])
    for batch in batches:
        counter.add(batch)
    return counter.result()


def test_census_by_hand():
    c = counted(LATENTS)
    assert c.n_tokens == 4
    assert c.positive_count.tolist() == [3, 1, 0, 0]
    assert c.negative_count.tolist() == [0, 2, 0, 2]
    assert c.positive_rate.tolist() == [0.75, 0.25, 0.0, 0.0]
    assert c.negative_rate.tolist() == [0.0, 0.5, 0.0, 0.5]
    assert c.positive_mean.tolist() == [2.0, 4.0, 0.0, 0.0]
    assert c.negative_mean.tolist() == [0.0, 4.0, 0.0, 1.0]
    assert c.positive_max.tolist() == [3.0, 4.0, 0.0, 0.0]
    assert c.negative_max.tolist() == [0.0, 6.0, 0.0, 1.5]
    assert c.alive.tolist() == [True, True, False, True]
    assert c.bipolar.tolist() == [False, True, False, False]
    assert c.bipolar_fraction == 1 / 3


def test_bipolar_fraction_is_0_where_all_are_dead():
    assert counted(torch.zeros(3, 5)).bipolar_fraction == 0.0


@pytest.mark.parametrize(
    "batches",
    [
        LATENTS.split(1),
        [LATENTS[:3].to_sparse(), LATENTS[3:]],
        [LATENTS.reshape(2, 2, 4)],
        [LATENTS[:0], LATENTS],
    ],
    ids=["rows", "sparse", "positions", "empty batch"],
)
def test_batches_add_up(batches):
    assert counted(*batches).to_dict() == counted(LATENTS).to_dict()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 700), st.integers(1, 4))
def test_counter_equals_one_dense_sum(seed, n_tokens, n_batches):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n_tokens, 6, generator=generator, dtype=torch.float64)
    z = z * (torch.rand(n_tokens, 6, generator=generator) < 0.1)
    c = counted(*z.chunk(n_batches))
    for side, sign in (("positive", 1), ("negative", -1)):
        magnitude = (sign * z).clamp(min=0)
        count = (magnitude > 0).sum(0)
        assert torch.equal(getattr(c, f"{side}_count"), count)
        torch.testing.assert_close(getattr(c, f"{side}_max"), magnitude.amax(0))
        mean = torch.where(count > 0, magnitude.sum(0) / count, 0.0)
        torch.testing.assert_close(getattr(c, f"{side}_mean"), mean)


def test_dict_is_json_and_comes_back():
    c = counted(
        torch.randn(37, 5, generator=torch.Generator().manual_seed(0)), LATENTS.new_zeros(4, 5)
    )
    values = json.loads(json.dumps(c.to_dict(), allow_nan=False))
    assert list(values) == [
        "n_tokens",
        *("positive_rate", "negative_rate"),
        *("positive_mean", "negative_mean"),
        *("positive_max", "negative_max"),
    ]
    assert all(len(values[key]) == 5 for key in values if key != "n_tokens")
    back = Census.from_dict(values)
    assert back.to_dict() == c.to_dict()
    assert torch.equal(back.positive_count, c.positive_count)
    assert torch.equal(back.bipolar, c.bipolar)


def test_from_dict_refuses_what_is_no_census():
    values = counted(LATENTS).to_dict()
    with pytest.raises(DataError, match="negative_max"):
        Census.from_dict({key: value for key, value in values.items() if key != "negative_max"})
    with pytest.raises(DataError, match="the same length"):
        Census.from_dict({**values, "positive_mean": [1.0]})


def test_census_of_an_sae_counts_what_it_encodes():
    torch.manual_seed(0)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=6, d_sae=16, k=3))
    x = torch.randn(40, 6)
    streamed = census(sae, iter(x.split(7)))
    assert streamed.n_tokens == 40
    latents = [sae.encode(batch).detach() for batch in x.split(7)]
    assert streamed.to_dict() == counted(*latents).to_dict()
    assert (streamed.positive_count + streamed.negative_count).sum() == 40 * 3
    assert not streamed.positive_mean.requires_grad


def test_a_non_negative_sae_has_an_empty_negative_side():
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=6, d_sae=8))
    c = census(sae, [torch.randn(2, 5, 6)])
    assert c.n_tokens == 10
    assert c.negative_count.sum() == 0
    assert c.positive_count.sum() > 0
    assert c.bipolar_fraction == 0.0


def test_a_head_hook_counts_tokens():
    torch.manual_seed(0)
    cfg = AbsTopKSAEConfig(d_in=6, d_sae=8, k=2, reshape_activations="hook_z")
    assert census(AbsTopKSAE(cfg), [torch.randn(4, 5, 3, 2)]).n_tokens == 20


def test_errors():
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=6, d_sae=16, k=3))
    sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    with pytest.raises(DataError, match="at least one token"):
        census(sae, [])
    batches = [torch.zeros(2, 6), torch.tensor([[0.0, 0, 0, 0, 0, float("nan")]])]
    with pytest.raises(ActivationError, match=r"blocks\.3\.hook_resid_post.*batch 1"):
        census(sae, batches)
