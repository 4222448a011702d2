"""Edits of vectors and latents against the same formulas written by hand."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAE

from sae_lens_bipolar import split
from sae_lens_bipolar.errors import ConfigError, ModelError
from sae_lens_bipolar.polarity.counting import census
from sae_lens_bipolar.polarity.splitting import inference_form
from sae_lens_bipolar.steering import AblateDirection, AddVector, EditLatents, Scale, steering
from sae_lens_bipolar.steering.hook_points import find_site
from tests.steering.models import HOOK, KINDS, direction, load, logits, some_tokens
from tests.steering.saes import D_SAE, EVERY, STOCK, TRAINING, WIDTH, make_sae
from tests.tiny_models import TINY_ARCHITECTURES

ACTIVATIONS = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(5)) * 2
EXACT = ACTIVATIONS.double()


@torch.no_grad()
def latents_and_decoded(sae: SAE[Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = sae.encode(x)
    return z, sae.decode(z)


@torch.no_grad()
def decoded(sae: SAE[Any], z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    sae.encode(x)  # keeps what undoes a normalisation per token
    return sae.decode(z)


def firing(sae: SAE[Any], n: int = 2) -> list[int]:
    """Latents that fire often on `ACTIVATIONS`."""
    z = sae.encode(ACTIVATIONS)
    order = (z != 0).sum(0).argsort(descending=True)
    assert (z[:, order[n - 1]] != 0).any()
    return order[:n].tolist()


@pytest.mark.parametrize("error", ["keep", "drop"])
@pytest.mark.parametrize("mode", ["clamp", "add", "ablate"])
@pytest.mark.parametrize("name", EVERY)
def test_latents_of_every_architecture_are_edited_as_by_hand(
    name: str, mode: Any, error: Any
) -> None:
    sae = make_sae(name, dtype="float64")  # random SAEs reconstruct badly: large terms cancel
    first, second = firing(sae)
    edit = EditLatents(sae, {first: 1.5, second: 0.25}, mode=mode, unit="raw", error=error)
    z, before = latents_and_decoded(sae, EXACT)
    new = z.clone()
    for latent, value in ((first, 1.5), (second, 0.25)):
        new[:, latent] = {
            "clamp": torch.full_like(z[:, latent], value),
            "add": z[:, latent] + value,
            "ablate": (1 - value) * z[:, latent],
        }[mode]
    after = decoded(sae, new, EXACT)
    expected = after if error == "drop" else EXACT + after - before
    torch.testing.assert_close(edit.apply(EXACT), expected, atol=1e-5, rtol=1e-5)
    assert (expected - EXACT).abs().max() > 0.05


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", ["keep", "drop"])
def test_in_a_model_an_edit_is_the_one_written_by_hand(
    kind: str, architecture: str, error: Any, tiny_model_dirs: dict[str, Path]
) -> None:
    model, tokens = load(kind, tiny_model_dirs[architecture]), some_tokens()
    sae = make_sae("sign_aware_gated full")
    latent = firing(sae)[0]

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        z, before = latents_and_decoded(sae, x)
        z[..., latent] = -3.0
        after = sae.decode(z)
        return after if error == "drop" else x + after - before

    unedited = logits(model, tokens)
    handle = find_site(model, HOOK).register(by_hand)
    expected = logits(model, tokens)
    handle.remove()
    with steering(model, EditLatents(sae, {latent: -3.0}, unit="raw", error=error)):
        torch.testing.assert_close(logits(model, tokens), expected, atol=1e-5, rtol=1e-5)
    assert (expected - unedited).abs().max() > 0.01
    assert torch.equal(logits(model, tokens), unedited)


@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_ablated_at_all_layers(kind: str, tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens, d = load(kind, tiny_model_dirs["llama"]), some_tokens(), direction()
    unit = d / d.norm()
    seen: list[torch.Tensor] = []
    with steering(model, AblateDirection(7 * d)):
        for hook in ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", HOOK):
            find = find_site(model, hook)
            seen_by = find.register(lambda x: (seen.append(x), x)[1])
            logits(model, tokens)
            seen_by.remove()
    for x in seen:
        assert (x @ unit).abs().max() < 1e-5 < 0.1 < x.abs().max()
    edit = AblateDirection(d, strength=2.0, hooks=HOOK)
    mirrored = edit.apply(ACTIVATIONS)
    torch.testing.assert_close(mirrored @ unit, -(ACTIVATIONS @ unit), atol=1e-5, rtol=1e-5)
    by_hand = ACTIVATIONS - 2 * (ACTIVATIONS @ unit)[:, None] * unit
    torch.testing.assert_close(mirrored, by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_no_latent_changes_the_activation_keeps_its_bits(
    name: str, dtype: torch.dtype
) -> None:
    sae = make_sae(name)
    x = ACTIVATIONS.to(dtype)
    latent = firing(sae)[0]
    for mode, value in (("add", 0.0), ("ablate", 0.0)):
        same = EditLatents(sae, {latent: value}, mode=mode, unit="raw").apply(x)  # type: ignore[arg-type]
        assert torch.equal(same.view(torch.int16), x.view(torch.int16))
    silent = (sae.encode(x)[:, latent] == 0).nonzero()[:, 0]
    ablated = EditLatents(sae, {latent: 1.0}, mode="ablate", unit="raw").apply(x)
    assert torch.equal(ablated[silent], x[silent])
    assert not torch.equal(ablated, x)
    assert EditLatents(sae, {}, unit="raw").apply(x) is x


@pytest.mark.parametrize("kind", KINDS)
def test_zero_edits_leave_every_bit_of_the_logits(
    kind: str, tiny_model_dirs: dict[str, Path]
) -> None:
    model, tokens, sae = load(kind, tiny_model_dirs["gemma2"]), some_tokens(), make_sae("abstopk")
    unedited = logits(model, tokens)
    edits = [
        AddVector(direction(), 0.0, HOOK),
        AblateDirection(direction(), 0.0),
        EditLatents(sae, {3: 0.0, 5: 0.0}, mode="add", unit="raw"),
        EditLatents(sae, {}, unit="raw"),
    ]
    with steering(model, edits):
        assert torch.equal(logits(model, tokens), unedited)


def test_no_value_and_no_error_term_is_the_reconstruction() -> None:
    sae = make_sae("bi_jumprelu")
    _, xhat = latents_and_decoded(sae, ACTIVATIONS)
    assert torch.equal(EditLatents(sae, {}, error="drop").apply(ACTIVATIONS), xhat)


@pytest.mark.parametrize(
    "name", [name for name, entry in TRAINING.items() if entry.splits_into and entry.record.signed]
)
@pytest.mark.parametrize("value", [1.7, -1.7])
@pytest.mark.parametrize("error", ["keep", "drop"])
def test_a_signed_edit_is_the_two_latent_edit_of_the_split(
    name: str, value: float, error: Any
) -> None:
    sae = make_sae(name, dtype="float64")
    twin, latent = split(sae), firing(sae)[0]
    signed = EditLatents(sae, {latent: value}, unit="raw", error=error).apply(EXACT)
    both = {latent: max(value, 0.0), D_SAE + latent: max(-value, 0.0)}
    pair = EditLatents(twin, both, unit="raw", error=error).apply(EXACT)
    torch.testing.assert_close(signed, pair, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("error", ["keep", "drop"])
@pytest.mark.parametrize("name", ["abstopk", "topk", "sign_aware_gated full"])
def test_normalisation_per_token_is_undone(name: str, error: Any, normalisation: str) -> None:
    sae = make_sae(name, normalize_activations=normalisation)
    latent = firing(sae)[0]
    z, before = latents_and_decoded(sae, ACTIVATIONS)
    new = z.clone()
    new[:, latent] = 2.0
    after = decoded(sae, new, ACTIVATIONS)
    expected = after if error == "drop" else ACTIVATIONS + after - before
    found = EditLatents(sae, {latent: 2.0}, unit="raw", error=error).apply(ACTIVATIONS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    scale = Scale(census(sae, [ACTIVATIONS]), ACTIVATIONS[0])
    step = EditLatents(sae, {latent: 0.5}, mode="add", unit="norm", scale=scale)
    moved = (step.apply(ACTIVATIONS[:1]) - ACTIVATIONS[:1]).norm()
    torch.testing.assert_close(moved, 0.5 * ACTIVATIONS[0].norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reshaping", [True, False])
def test_saes_of_attention_heads(
    kind: str, reshaping: bool, tiny_model_dirs: dict[str, Path]
) -> None:
    hook, latent = "blocks.0.attn.hook_z", 4
    model, tokens = load(kind, tiny_model_dirs["gpt2"]), some_tokens()
    sae = make_sae("abstopk", hook=hook, reshape_activations="hook_z")
    if not reshaping:
        sae.turn_off_forward_pass_hook_z_reshaping()

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        step = sae.W_dec[latent] * (5.0 - sae.encode(x if reshaping else flat)[..., latent, None])
        return (flat + step).detach().view_as(x)

    handle = find_site(model, hook).register(by_hand)
    expected = logits(model, tokens)
    handle.remove()
    with steering(model, EditLatents(sae, {latent: 5.0}, unit="raw")):
        torch.testing.assert_close(logits(model, tokens), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits(model, tokens), atol=1e-3)


def test_sparse_latents_are_edited_too() -> None:
    sae = make_sae("topk")
    expected = EditLatents(sae, {3: 2.0}, unit="raw").apply(ACTIVATIONS)
    sae.encode = lambda x, dense=sae.encode: dense(x).to_sparse()  # type: ignore[method-assign]
    assert torch.equal(EditLatents(sae, {3: 2.0}, unit="raw").apply(ACTIVATIONS), expected)


def test_a_training_sae_is_edited_as_it_is_saved() -> None:
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=D_SAE, k=4))
    sae.topk_threshold.fill_(0.7)  # type: ignore[operator]
    sae.cfg.metadata.hook_name = HOOK
    expected = EditLatents(inference_form(sae), {3: 1.0}, unit="raw").apply(ACTIVATIONS)
    assert torch.equal(EditLatents(sae, {3: 1.0}, unit="raw").apply(ACTIVATIONS), expected)


def test_edits_at_one_hook_apply_in_order_and_contexts_nest(
    tiny_model_dirs: dict[str, Path],
) -> None:
    model, tokens, d = load("hooked", tiny_model_dirs["gpt2"]), some_tokens(), direction()
    add, ablate = AddVector(d, 3.0, HOOK), AblateDirection(d, hooks=HOOK)
    found = {}
    for name, edits in {"add first": [add, ablate], "ablate first": [ablate, add]}.items():
        with steering(model, edits):
            found[name] = logits(model, tokens)
    with steering(model, ablate):
        alone = logits(model, tokens)
        with steering(model, add):
            nested = logits(model, tokens)
        assert torch.equal(logits(model, tokens), alone)
    torch.testing.assert_close(found["add first"], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(found["ablate first"], nested)
    assert not torch.allclose(nested, alone, atol=1e-2)


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_are_gone_after_errors(kind: str, tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens = load(kind, tiny_model_dirs["gpt2"]), some_tokens()
    before, unedited = hooks_of(model), logits(model, tokens)
    good = AddVector(direction(), 1.0, HOOK)
    narrow = AddVector(direction(5), 1.0, HOOK)
    nowhere = AddVector(direction(), 1.0, "blocks.1.nowhere")

    def fail_inside() -> None:
        assert hooks_of(model) > before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), steering(model, good):
        fail_inside()
    assert hooks_of(model) == before
    with pytest.raises(ConfigError, match="width 5, the hook gives 32"):  # noqa: SIM117
        with steering(model, [good, narrow]):
            logits(model, tokens)
    assert hooks_of(model) == before
    with pytest.raises(ModelError, match=r"no such hook|neither"), steering(model, [good, nowhere]):
        fail_inside()
    assert hooks_of(model) == before
    assert torch.equal(logits(model, tokens), unedited)


def test_hooks_survive_what_hosts_reset(tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens = load("hooked", tiny_model_dirs["gpt2"]), some_tokens()
    with steering(model, AddVector(direction(), 2.0, "blocks.0.hook_resid_post")):
        steered = logits(model, tokens)
        model.reset_hooks()
        again, cache = model.run_with_cache(tokens, prepend_bos=False)
    assert torch.equal(again, steered)
    unsteered, clean = model.run_with_cache(tokens, prepend_bos=False)
    assert not torch.allclose(unsteered, steered, atol=1e-3)
    step = cache["blocks.0.hook_resid_post"] - clean["blocks.0.hook_resid_post"]
    torch.testing.assert_close(step, (2 * direction()).expand_as(step), atol=1e-5, rtol=1e-5)


def test_gradients_flow_only_where_asked() -> None:
    sae, x = make_sae("abstopk"), ACTIVATIONS.clone().requires_grad_()
    edit = EditLatents(sae, {3: 2.0}, unit="raw")
    assert not edit.apply(ACTIVATIONS).requires_grad
    edit.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens, sae = load(kind, tiny_model_dirs["llama"]), some_tokens(), make_sae("abstopk")
    edit = EditLatents(sae, {3: 2.0}, unit="raw")
    with steering(model, edit):
        exact = logits(model, tokens)
    model = model.to(torch.bfloat16)
    with steering(model, [edit, AddVector(direction(), 0.1, HOOK)]):
        found = logits(model, tokens)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 0.5


def test_stock_saes_are_those_of_saelens() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in STOCK:  # non-negative: a positive value extrapolates nothing
            EditLatents(make_sae(name), {0: 1.0}, unit="raw")
