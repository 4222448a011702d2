"""What `measure` averages over: sinks left out or not, batches, sequences, activations of 0.

Every expected number is computed once more from whole forward passes over all tokens.
"""

from collections.abc import Callable

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.reconstruction import measure

HOOK = "blocks.0.hook_resid_pre"
EARLY = "hook_embed"  # there a token's activation is its row of W_E


def an_sae(model: HookedTransformer, hook_name: str = HOOK) -> SAE:
    torch.manual_seed(3)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=model.cfg.d_model, d_sae=64, k=5))
    sae.cfg.metadata.hook_name = hook_name
    return sae


def some_tokens(model: HookedTransformer, sequences: int = 12, context: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(11, model.cfg.d_vocab, (sequences, context), generator=generator)
    tokens[:, 0] = 0
    return tokens


def altered(
    model: HookedTransformer, alter: Callable[[torch.Tensor], torch.Tensor]
) -> HookedTransformer:
    """A copy whose embedding is `alter(W_E)`."""
    copy = HookedTransformer(model.cfg, tokenizer=model.tokenizer)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.W_E.copy_(alter(copy.W_E.clone()))
    return copy


def bos_is_a_sink(W_E: torch.Tensor) -> torch.Tensor:
    W_E[0] *= 1e3
    return W_E


def losses(model: HookedTransformer, tokens: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Next-token losses, `[sequences, position - 1]`, with `value` at the hook."""
    return model.run_with_hooks(
        tokens,
        return_type="loss",
        loss_per_token=True,
        prepend_bos=False,
        fwd_hooks=[(HOOK, lambda activations, hook: value)],
    )


@torch.no_grad()
def test_loss_recovered_with_and_without_sinks(tiny_model: HookedTransformer) -> None:
    """Without them, sinks keep their activations and the losses at them are not averaged."""
    model, tokens = altered(tiny_model, bos_is_a_sink), some_tokens(tiny_model)
    tokens[3, 7] = tokens[8, 15] = 0  # in the middle, and where no loss is
    sae = an_sae(model)
    x = model.run_with_cache(tokens, prepend_bos=False)[1][HOOK]
    kept = x.norm(dim=-1) <= 10 * x[:5].norm(dim=-1).median()
    assert torch.equal(kept, tokens != 0)
    xhat = sae(x)
    clean, zero = losses(model, tokens, x), losses(model, tokens, torch.zeros_like(x))
    found = measure({"a": sae}, model, tokens, batch_size=5)["a"]
    for name, patched, counted in (
        ("with", losses(model, tokens, xhat), torch.ones_like(kept)),
        ("without", losses(model, tokens, torch.where(kept[..., None], xhat, x)), kept),
    ):
        ce_clean, ce_zero, ce = (c[counted[:, :-1]].mean() for c in (clean, zero, patched))
        side = getattr(found, f"{name}_sinks")
        expected = ((ce_zero - ce) / (ce_zero - ce_clean)).item()
        assert side.loss_recovered == pytest.approx(expected, rel=1e-3), name
        assert side.n_loss_tokens == int(counted[:, :-1].sum())
        assert side.n_tokens == int(counted.sum())
    assert found.with_sinks.loss_recovered != pytest.approx(
        found.without_sinks.loss_recovered, rel=1e-2
    )


def test_sinks_are_those_of_the_first_batch_in_every_batch(tiny_model: HookedTransformer) -> None:
    """Later batches hold nothing but large activations; by their own median none were a sink."""

    def large(W_E: torch.Tensor) -> torch.Tensor:
        W_E[10] = 30 * W_E[11:].norm(dim=-1).median() * W_E[10] / W_E[10].norm()
        return W_E

    model, tokens = altered(tiny_model, large), some_tokens(tiny_model)
    tokens[:, 0] = 11
    tokens[4:] = 10
    found = measure({"a": an_sae(model, EARLY)}, model, tokens, batch_size=4)["a"]
    assert found.with_sinks.n_tokens == 12 * 16
    assert found.without_sinks.n_tokens == found.census.n_tokens == 4 * 16
    assert found.without_sinks.n_loss_tokens == 4 * 15
    first = measure({"a": an_sae(model, EARLY)}, model, tokens[:4], batch_size=4)["a"]
    assert first.without_sinks == first.with_sinks
    for field in ("nmse", "r2", "l0"):
        assert getattr(found.without_sinks, field) == pytest.approx(
            getattr(first.without_sinks, field)
        )


@pytest.mark.parametrize("n_loss", [1, 5, 7, 12, 40])
def test_the_loss_is_that_of_the_first_sequences(
    tiny_model: HookedTransformer, n_loss: int
) -> None:
    """Of 12, in batches of 5: also where their number ends inside a batch, or beyond the last."""
    tokens, sae = some_tokens(tiny_model), an_sae(tiny_model)
    expected = measure({"a": sae}, tiny_model, tokens[:n_loss], batch_size=5)["a"]
    found = measure({"a": sae}, tiny_model, tokens, batch_size=5, n_loss_sequences=n_loss)["a"]
    assert found.with_sinks.n_tokens == 12 * 16
    assert found.with_sinks.n_loss_tokens == min(n_loss, 12) * 15
    assert found.with_sinks.loss_recovered == pytest.approx(
        expected.with_sinks.loss_recovered, rel=1e-4
    )


def test_tokens_whose_activations_are_0_have_no_relative_error(
    tiny_model: HookedTransformer,
) -> None:
    def silent(W_E: torch.Tensor) -> torch.Tensor:
        W_E[0] = 0
        return W_E

    model, tokens = altered(tiny_model, silent), some_tokens(tiny_model)
    sae = an_sae(model, EARLY)
    with torch.no_grad():
        sae.b_dec.add_(0.5)  # so that 0 is not reconstructed
        x = model.W_E[tokens].double()
        error = (x - sae(x.float()).double()).pow(2).sum(-1)
        expected = (error / x.pow(2).sum(-1))[tokens != 0].mean().item()
    found = measure({"a": sae}, model, tokens, batch_size=5)["a"].with_sinks
    assert found.nmse == pytest.approx(expected, rel=1e-5)
    assert found.n_tokens == tokens.numel(), "they count in every other average"


def test_r2_of_activations_far_from_0(tiny_model: HookedTransformer) -> None:
    """Where float32 rounds a batch's mean by a good part of the standard deviation."""
    model = altered(tiny_model, lambda W_E: 2.0**20 + torch.randn(W_E.shape) + 0.3)
    tokens, sae = some_tokens(model), an_sae(model, EARLY)
    with torch.no_grad():
        x = model.W_E[tokens].flatten(0, 1)
        error = (x - sae(x)).double().pow(2).sum()
        variation = (x.double() - x.double().mean(0)).pow(2).sum()
    found = measure({"a": sae}, model, tokens, batch_size=5)["a"].with_sinks
    assert found.r2 == pytest.approx((1 - error / variation).item(), rel=1e-6)
