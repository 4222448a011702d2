"""Descriptions of latents, number by number, for latents whose activations are chosen by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.describe import (
    N_BINS,
    describe_latents,
    logit_effects,
    two_sided_latents,
)
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.polarity.counting import Census

# What latent 0 does at the tokens 10, 11, ...; 0 elsewhere. The last one is an attention sink.
VALUES = (1.0, 3.0, -2.0, 0.123456, -4.0, 1.5, 7.0)
SINK = 10 + len(VALUES) - 1
#             positions: 0   1   2   3   4   5
TOKENS = torch.tensor(
    [
        [20, 10, 11, 12, 20, 20],  # 0, 1, 3, -2, 0, 0
        [13, 20, 20, 20, 20, 12],  # 0.1235, 0, 0, 0, 0, -2
        [20, 20, 20, 20, 20, 14],  # never positive; -4
        [SINK, 20, 15, 20, 20, 20],  # 7 at a sink, then 1.5
        [20, 20, 20, 20, 20, 20],  # silent
    ]
)


@pytest.fixture
def model(tiny_model: HookedTransformer) -> HookedTransformer:
    """Its embedding holds `VALUES` in column 0 and the same number everywhere in column 1."""
    copy = HookedTransformer(tiny_model.cfg, tokenizer=tiny_model.tokenizer)
    copy.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        copy.W_E.zero_()
        copy.W_E[:, 1] = 5.0
        copy.W_E[10 : 10 + len(VALUES), 0] = torch.tensor(VALUES)
        copy.W_E[SINK, 1] = 60.0
    return copy


@pytest.fixture
def sae(model: HookedTransformer) -> SAE[Any]:
    """Latent 0 is the activation's entry 0, latent 1 minus it; everything is kept."""
    found = AbsTopKSAE(AbsTopKSAEConfig(d_in=model.cfg.d_model, d_sae=4, k=4))
    found.cfg.metadata.hook_name = "hook_embed"
    with torch.no_grad():
        found.b_dec.zero_()
        found.W_enc.zero_()
        found.W_enc[0, 0], found.W_enc[0, 1] = 1.0, -1.0
    return found


def a_census(positive: list[int], negative: list[int], n_tokens: int = 100) -> Census:
    zeros = torch.zeros(len(positive), dtype=torch.float64)
    counts = torch.tensor(positive), torch.tensor(negative)
    return Census(n_tokens, *counts, zeros, zeros, zeros, zeros)


def described(model: HookedTransformer, sae: SAE[Any], **options: Any) -> list[dict[str, Any]]:
    census = {"a": a_census([30, 1, 1, 1], [10, 2, 2, 2])}
    options = {"radius": 2, "batch_size": 2, **options}
    return describe_latents({"a": sae}, model, TOKENS, {"a": [0, 1]}, census, **options)["a"]


def test_the_most_balanced_latents_come_first() -> None:
    #                 balance: 1, 4, 2, 0, 2, too frequent, at the limit
    census = a_census([1, 5, 2, 9, 7, 6, 5], [9, 4, 8, 0, 2, 5, 5])
    assert two_sided_latents(census, 10) == [6, 1, 2, 4, 0]
    assert two_sided_latents(census, 2) == [6, 1]
    assert two_sided_latents(census, 10, max_rate=0.095) == [1, 4]
    assert two_sided_latents(census, 10, max_rate=0.125) == [5, 6, 1, 2, 4, 0]


def test_contexts_are_the_strongest_of_each_sequence(
    model: HookedTransformer, sae: SAE[Any]
) -> None:
    first, second = described(model, sae)
    assert (first["index"], first["positive_rate"], first["negative_rate"]) == (0, 0.3, 0.1)
    assert (second["index"], second["positive_rate"], second["negative_rate"]) == (1, 0.01, 0.02)
    tokenizer = tokenizer_of(model)

    def context(row: int, start: int, stop: int, peak: int, values: list[float]) -> dict[str, Any]:
        texts = [tokenizer.decode([token]) for token in TOKENS[row, start:stop].tolist()]
        return {"tokens": texts, "activations": values, "peak": peak, "sequence": row}

    assert first["contexts"]["positive"] == [
        context(0, 0, 5, 2, [0.0, 1.0, 3.0, -2.0, 0.0]),
        context(3, 0, 5, 2, [0.0, 0.0, 1.5, 0.0, 0.0]),  # the sink counts as silent
        context(1, 0, 3, 0, [0.1235, 0.0, 0.0]),
    ]
    assert first["contexts"]["negative"] == [
        context(2, 3, 6, 2, [0.0, 0.0, -4.0]),
        context(0, 1, 6, 2, [1.0, 3.0, -2.0, 0.0, 0.0]),
        context(1, 3, 6, 2, [0.0, 0.0, -2.0]),
    ]
    mirrored = second["contexts"]
    assert [c["sequence"] for c in mirrored["negative"]] == [0, 3, 1]
    assert mirrored["positive"][0]["activations"] == [0.0, 0.0, 4.0]
    assert len(described(model, sae, n_contexts=1)[0]["contexts"]["positive"]) == 1


def test_the_histogram_is_symmetric_and_leaves_out_what_is_silent(
    model: HookedTransformer, sae: SAE[Any]
) -> None:
    found = described(model, sae)[0]["histogram"]
    edges, counts = torch.tensor(found["edges"]), torch.tensor(found["counts"])
    assert len(edges) == N_BINS + 1 == len(counts) + 1
    torch.testing.assert_close(edges, torch.linspace(-4, 4, N_BINS + 1))
    expected = torch.zeros(N_BINS, dtype=torch.long)
    for value in (1.0, 3.0, -2.0, 0.123456, -2.0, -4.0, 1.5):
        expected[min(int((value + 4) / 8 * N_BINS), N_BINS - 1)] += 1
    assert counts.tolist() == expected.tolist()
    with torch.no_grad():
        sae.W_enc.zero_()
    silent = described(model, sae)[0]
    assert silent["histogram"]["counts"] == [0] * N_BINS
    assert (silent["histogram"]["edges"][0], silent["histogram"]["edges"][-1]) == (-1.0, 1.0)
    assert silent["contexts"] == {"positive": [], "negative": []}


@torch.no_grad()
def test_effects_on_logits_by_hand() -> None:
    W_U = torch.tensor([[1.0, 2.0, 6.0], [0.0, -1.0, 1.0]])
    norm = SimpleNamespace(w=torch.tensor([2.0, 3.0]))
    model: Any = SimpleNamespace(cfg=SimpleNamespace(d_model=2), ln_final=norm, W_U=W_U)
    # (2, 0) W_U = (2, 4, 12), of mean 6; (0, 3) W_U = (0, -3, 3), of mean 0
    expected = torch.tensor([[-4.0, -2.0, 6.0], [0.0, -3.0, 3.0]])
    torch.testing.assert_close(logit_effects(model, torch.eye(2)), expected)
    model.ln_final = SimpleNamespace()  # a norm without a gain
    torch.testing.assert_close(
        logit_effects(model, torch.eye(2)), torch.tensor([[-2.0, -1.0, 3.0], [0.0, -1.0, 1.0]])
    )
    assert logit_effects(model, torch.ones(4, 3)).shape == (4, 0), "no direct path"


def test_raised_and_lowered_tokens_are_the_extremes(
    model: HookedTransformer, sae: SAE[Any]
) -> None:
    latent = described(model, sae, n_tokens=3)[1]
    effect = logit_effects(model, sae.W_dec[1:2])[0]
    tokenizer = tokenizer_of(model)
    for name, order in (("raises", effect.argsort(descending=True)), ("lowers", effect.argsort())):
        expected = [[tokenizer.decode([i]), round(effect[i].item(), 4)] for i in order[:3].tolist()]
        assert latent[name] == expected


def test_each_sae_reads_with_its_own_latents(model: HookedTransformer, sae: SAE[Any]) -> None:
    other = AbsTopKSAE(replace(sae.cfg))
    other.load_state_dict(sae.state_dict())
    with torch.no_grad():
        other.W_enc[0, 2] = 2.0
    saes: dict[str, SAE[Any]] = {"a": sae, "b": other}
    census = dict.fromkeys(saes, a_census([1] * 4, [1] * 4))
    found = describe_latents(saes, model, TOKENS, {"a": [1], "b": [2, 0]}, census, radius=2)
    assert [entry["index"] for entry in found["b"]] == [2, 0]
    assert found["b"][0]["contexts"]["positive"][0]["activations"] == [0.0, 2.0, 6.0, -4.0, 0.0]
    assert found["a"][0]["contexts"]["negative"][0]["activations"] == [0.0, -1.0, -3.0, 2.0, 0.0]
