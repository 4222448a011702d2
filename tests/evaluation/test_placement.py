"""SAEs of one head, of flattened heads and of some positions, beside SAELens's own evaluation."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens import HookedTransformer

import sae_lens_bipolar  # noqa: F401
from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.evaluation.averages import mean_nmse, nmse
from sae_lens_bipolar.evaluation.describe import describe_latents
from sae_lens_bipolar.evaluation.placement import activations, placement
from sae_lens_bipolar.evaluation.reconstruction import measure
from sae_lens_bipolar.inputs.models import load_model
from tests.evaluation.test_reconstruction import make_tokens

# model, hook, d_in, head
PLACES = [
    ("gpt2", "blocks.0.attn.hook_z", 32, None),
    ("gpt2", "blocks.1.attn.hook_q", 32, None),
    ("llama", "blocks.0.attn.hook_k", 16, None),
    ("gpt2", "blocks.0.attn.hook_z", 8, 1),
    ("llama", "blocks.1.attn.hook_k", 8, 1),
]


def make_sae(hook_name: str, d_in: int, head: int | None = None, **metadata: object) -> SAE:
    torch.manual_seed(3)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=d_in, d_sae=48, k=4))
    sae.cfg.metadata.hook_name = hook_name
    sae.cfg.metadata.hook_head_index = head
    sae.cfg.metadata.prepend_bos = True
    for key, value in metadata.items():
        sae.cfg.metadata[key] = value
    return sae


@pytest.mark.parametrize(("model_name", "hook_name", "d_in", "head"), PLACES)
def test_agrees_with_saelens_at_hooks_of_heads(
    tiny_model_dirs, model_name: str, hook_name: str, d_in: int, head: int | None
) -> None:
    model = load_model(str(tiny_model_dirs[model_name]))
    sae, tokens = make_sae(hook_name, d_in, head), make_tokens(model)
    found = measure({"a": sae}, model, tokens, batch_size=5)["a"].with_sinks
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    store = ActivationsStore.from_sae(
        model, sae, dataset, context_size=tokens.shape[1], store_batch_size_prompts=12
    )
    theirs, _ = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        EvalConfig(
            n_eval_reconstruction_batches=1,
            n_eval_sparsity_variance_batches=1,
            compute_ce_loss=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        ),
        exclude_special_tokens=False,
    )
    recovered = theirs["model_performance_preservation"]["ce_loss_score"]
    assert found.loss_recovered == pytest.approx(recovered, rel=1e-3, abs=1e-4)
    assert found.l0 == pytest.approx(theirs["sparsity"]["l0"])
    explained = theirs["reconstruction_quality"]["explained_variance"]
    assert found.r2 == pytest.approx(explained, rel=1e-4, abs=1e-5)


def test_one_head_by_hand(tiny_model: HookedTransformer) -> None:
    """Only the head that the SAE reads is encoded, ablated and replaced."""
    hook_name, head, tokens = "blocks.0.attn.hook_z", 1, make_tokens(tiny_model)
    sae = make_sae(hook_name, 8, head)
    found = measure({"a": sae}, tiny_model, tokens)["a"].with_sinks
    x = activations(tiny_model, tokens, hook_name)[:, :, head]

    def loss(change) -> float:
        def put(a, hook):
            a = a.clone()
            a[:, :, head] = change(a[:, :, head])
            return a

        hooks: list[Any] = [(hook_name, put)]
        return tiny_model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks).item()

    clean, zero, patched = loss(lambda a: a), loss(torch.zeros_like), loss(sae)
    expected = (zero - patched) / (zero - clean)
    assert found.loss_recovered == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert found.nmse == pytest.approx(nmse(x, sae(x)).mean().item(), rel=1e-5)
    assert found.l0 == 4


def test_positions_outside_the_slice_are_neither_counted_nor_replaced(
    tiny_model: HookedTransformer,
) -> None:
    hook_name, tokens = "blocks.0.hook_mlp_out", make_tokens(tiny_model)
    sae = make_sae(hook_name, 32, seqpos_slice=[2, -3])
    found = measure({"a": sae}, tiny_model, tokens)["a"].with_sinks
    x = activations(tiny_model, tokens, hook_name)
    inside = slice(2, -3)
    assert found.n_tokens == 12 * 11
    assert found.nmse == pytest.approx(nmse(x, sae(x))[:, inside].mean().item(), rel=1e-5)

    def loss(value: torch.Tensor | None) -> torch.Tensor:
        def put(a, hook):
            a = a.clone()
            if value is not None:
                a[:, inside] = value[:, inside]
            return a

        options = {"return_type": "loss", "loss_per_token": True}
        per_token = tiny_model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)], **options)
        return per_token[:, 2 : tokens.shape[1] - 3].mean()

    clean, zero, patched = loss(None), loss(torch.zeros_like(x)), loss(sae(x))
    expected = ((zero - patched) / (zero - clean)).item()
    assert found.loss_recovered == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert found.n_loss_tokens == 12 * 11


def test_saes_of_two_heads_are_measured_as_each_alone(tiny_model: HookedTransformer) -> None:
    hook_name, tokens = "blocks.0.attn.hook_z", make_tokens(tiny_model)
    saes = {str(h): make_sae(hook_name, 8, h) for h in (0, 3)}
    together = measure(saes, tiny_model, tokens)
    for name, sae in saes.items():
        alone = measure({name: sae}, tiny_model, tokens)[name]
        assert together[name].without_sinks == alone.without_sinks


def test_latents_of_one_head_are_described(tiny_model: HookedTransformer) -> None:
    tokens = make_tokens(tiny_model)
    sae = make_sae("blocks.0.attn.hook_z", 8, 1, seqpos_slice=[4, None])
    census = {"a": measure({"a": sae}, tiny_model, tokens)["a"].census}
    latent = int(census["a"].positive_count.argmax())
    (found,) = describe_latents({"a": sae}, tiny_model, tokens, {"a": [latent]}, census)["a"]
    z = sae.encode(activations(tiny_model, tokens, "blocks.0.attn.hook_z")[:, :, 1])[:, 4:]
    assert sum(found["histogram"]["counts"]) == int((z[..., latent] != 0).sum())


def test_what_is_read_can_be_written_back(tiny_model: HookedTransformer) -> None:
    whole = activations(tiny_model, make_tokens(tiny_model), "blocks.0.attn.hook_z")
    for head in (None, 2):
        place = placement(make_sae("blocks.0.attn.hook_z", 8, head))
        assert torch.equal(place.write(whole, place.read(whole)), whole)
        assert not torch.equal(place.write(whole, place.read(whole) + 1), whole)


def test_an_sae_without_a_hook_is_refused() -> None:
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=8, d_sae=16, k=2))
    with pytest.raises(DataError, match="hook_name"):
        placement(sae)


def test_tokens_with_zero_activations_are_left_out_of_nmse(tiny_model: HookedTransformer) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    xhat = torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(nmse(x, xhat), torch.tensor([16 / 25, 0.0, 0.0]))
    assert mean_nmse(x, xhat) == pytest.approx(16 / 25)
    assert mean_nmse(x[1:], xhat[1:]) == 0.0
    model = HookedTransformer(tiny_model.cfg, tokenizer=tiny_model.tokenizer)
    model.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        model.W_E[5] = 0.0
        model.W_pos[3] = 0.0  # token 5 at position 3 is the zero vector
    tokens = make_tokens(model)
    tokens[:, 3] = 5
    sae = make_sae("hook_embed", 32)
    found = measure({"a": sae}, model, tokens)["a"].with_sinks
    x = activations(model, tokens, "hook_embed")
    kept = x.norm(dim=-1) > 0
    assert int((~kept).sum()) >= 12
    expected = (x - sae(x)).pow(2).sum(-1)[kept] / x.pow(2).sum(-1)[kept]
    assert found.nmse == pytest.approx(expected.mean().item(), rel=1e-5)
    assert math.isfinite(found.r2)


def test_r2_is_right_where_the_mean_is_ten_thousand_deviations(
    tiny_model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference of float32 sums gives 0.0 here."""
    from sae_lens_bipolar.evaluation import loss, text_reader

    tokens = make_tokens(tiny_model)
    sae = make_sae("blocks.0.hook_mlp_out", 32)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(*tokens.shape, 32, generator=generator)
    x, xhat = 1e4 + noise, 1e4 + 0.7 * noise

    class Rebuilt(AbsTopKSAE):
        def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
            return xhat[: len(feature_acts)]

    sae.__class__ = Rebuilt
    monkeypatch.setattr(text_reader, "activations", lambda *_: x)
    monkeypatch.setattr(loss.Losses, "add", lambda *_: None)
    monkeypatch.setattr(loss.Losses, "result", lambda *_: _NO_LOSS)
    found = measure({"a": sae}, tiny_model, tokens, batch_size=12)["a"].with_sinks
    double, of = x.double(), xhat.double()
    error = (double - of).pow(2).sum()
    variation = (double - double.flatten(0, 1).mean(0)).pow(2).sum()
    assert found.r2 == pytest.approx(1 - (error / variation).item(), abs=1e-4)
    assert found.r2 == pytest.approx(0.91, abs=0.01)


_NO_LOSS = {"loss_recovered": 0.0, "n_loss_tokens": 0}
