"""Metrics by hand, and against SAELens's own evaluation on the same tokens."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens import HookedTransformer

import sae_lens_bipolar  # noqa: F401
from sae_lens_bipolar.errors import ActivationError, DataError
from sae_lens_bipolar.evaluation.averages import nmse
from sae_lens_bipolar.evaluation.placement import activations
from sae_lens_bipolar.evaluation.reconstruction import measure, sink_threshold
from sae_lens_bipolar.inputs.models import load_model

HOOKS = [
    ("blocks.0.hook_resid_post", "none"),
    ("blocks.1.hook_resid_post", "none"),
    ("blocks.0.hook_mlp_out", "none"),
    ("blocks.0.hook_attn_out", "none"),
    ("blocks.1.attn.hook_z", "hook_z"),
    ("hook_embed", "none"),
]


def make_sae(model: HookedTransformer, hook_name: str, reshape: str = "none", k: int = 5) -> SAE:
    torch.manual_seed(3)
    sae = AbsTopKSAE(
        AbsTopKSAEConfig(
            d_in=model.cfg.d_model,
            d_sae=64,
            k=k,
            reshape_activations=reshape,  # type: ignore[arg-type]
        )
    )
    sae.cfg.metadata.hook_name = hook_name
    return sae


def make_tokens(model: HookedTransformer, sequences: int = 12, context: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, model.cfg.d_vocab, (sequences, context), generator=generator)
    tokens[:, 0] = 0  # bos
    return tokens


def test_sink_threshold_is_ten_medians() -> None:
    x = torch.zeros(5, 2)
    x[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0, 1000.0])
    assert sink_threshold(x) == 30.0


@pytest.mark.parametrize(("hook_name", "reshape"), HOOKS)
def test_agrees_with_saelens_on_the_same_tokens(
    tiny_model: HookedTransformer, hook_name: str, reshape: str
) -> None:
    sae = make_sae(tiny_model, hook_name, reshape)
    tokens = make_tokens(tiny_model)
    found = measure({"a": sae}, tiny_model, tokens, batch_size=5)["a"].with_sinks
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    sae.cfg.metadata.prepend_bos = True
    store = ActivationsStore.from_sae(
        tiny_model, sae, dataset, context_size=tokens.shape[1], store_batch_size_prompts=12
    )
    theirs, _ = run_evals(
        sae,
        store,
        tiny_model,
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
    assert found.r2 == pytest.approx(
        theirs["reconstruction_quality"]["explained_variance"], rel=1e-4, abs=1e-5
    )
    assert found.n_tokens == tokens.numel()
    assert found.n_loss_tokens == 12 * 15


@pytest.mark.parametrize(("hook_name", "reshape"), HOOKS)
def test_a_model_in_half_precision(
    tiny_model: HookedTransformer,
    tiny_model_dirs: dict[str, Path],
    hook_name: str,
    reshape: str,
) -> None:
    tokens = make_tokens(tiny_model)
    sae = make_sae(tiny_model, hook_name, reshape, k=40)  # in float32
    model = load_model(tiny_model_dirs["gpt2"], dtype="bfloat16")
    found = measure({"a": sae}, model, tokens)["a"].with_sinks
    x = activations(model, tokens, hook_name)
    assert x.dtype == torch.bfloat16
    expected = nmse(x.flatten(2).double(), sae(x.float()).flatten(2).double()).mean().item()
    assert found.nmse == pytest.approx(expected, rel=1e-5)  # sums in bfloat16 are off by 1e-3
    assert math.isfinite(found.loss_recovered)


def test_several_saes_share_passes_and_give_what_each_gives_alone(
    tiny_model: HookedTransformer,
) -> None:
    hook_name = "blocks.0.hook_mlp_out"
    saes = {str(k): make_sae(tiny_model, hook_name, k=k) for k in (2, 9)}
    tokens = make_tokens(tiny_model)
    together = measure(saes, tiny_model, tokens)
    for name, sae in saes.items():
        alone = measure({name: sae}, tiny_model, tokens, batch_size=12)[name]
        for field in ("nmse", "r2", "l0", "loss_recovered"):
            expected = getattr(alone.without_sinks, field)
            assert getattr(together[name].without_sinks, field) == pytest.approx(expected, rel=1e-4)
        assert alone.without_sinks.l0 == float(name)


def test_sinks_are_left_out_and_counted(tiny_model: HookedTransformer) -> None:
    """A token made a sink by hand: its own error counts only with sinks, its patch never."""
    hook_name = "blocks.0.hook_resid_pre"
    tokens = make_tokens(tiny_model)
    model = HookedTransformer(tiny_model.cfg, tokenizer=tiny_model.tokenizer)
    model.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        model.W_E[0] += 1e3  # bos
    sae = make_sae(model, hook_name)
    found = measure({"a": sae}, model, tokens)["a"]
    assert found.with_sinks.n_tokens - found.without_sinks.n_tokens == len(tokens)
    assert found.census.n_tokens == found.without_sinks.n_tokens
    x = model.run_with_cache(tokens)[1][hook_name][:, 1:]
    expected = nmse(x, sae(x)).mean().item()
    assert found.without_sinks.nmse == pytest.approx(expected, rel=1e-4)
    assert found.without_sinks.n_loss_tokens == len(tokens) * (tokens.shape[1] - 2)
    assert not math.isclose(found.without_sinks.r2, found.with_sinks.r2, rel_tol=1e-2)


def test_dead_and_two_sided_latents(tiny_model: HookedTransformer) -> None:
    hook_name = "blocks.0.hook_mlp_out"
    signed = make_sae(tiny_model, hook_name)
    tokens = make_tokens(tiny_model)
    with torch.no_grad():
        signed.W_enc[:, :16] = 0.0
    found = measure({"a": signed}, tiny_model, tokens)["a"]
    z = signed.encode(tiny_model.run_with_cache(tokens)[1][hook_name]).flatten(0, 1)
    up, down = (z > 0).any(0), (z < 0).any(0)
    assert found.dead_fraction == pytest.approx(1 - (up | down).double().mean().item())
    assert found.dead_fraction >= 0.25
    assert found.bipolar_fraction == pytest.approx(
        (up & down).sum().item() / (up | down).sum().item()
    )
    unsigned = TopKSAE(TopKSAEConfig(d_in=signed.cfg.d_in, d_sae=64, k=5))
    unsigned.cfg.metadata.hook_name = hook_name
    assert measure({"b": unsigned}, tiny_model, tokens)["b"].bipolar_fraction == 0.0


def test_bad_input_is_named(tiny_model: HookedTransformer) -> None:
    sae = make_sae(tiny_model, "blocks.0.hook_mlp_out")
    with pytest.raises(DataError, match="sequences, context_size"):
        measure({"a": sae}, tiny_model, torch.zeros(0, 8, dtype=torch.long))
    other = make_sae(tiny_model, "blocks.1.hook_mlp_out")
    with pytest.raises(DataError, match="one hook"):
        measure({"a": sae, "b": other}, tiny_model, make_tokens(tiny_model))
    model = HookedTransformer(tiny_model.cfg, tokenizer=tiny_model.tokenizer)
    with torch.no_grad():
        model.blocks[0].mlp.b_out[0] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(ActivationError, match=r"blocks\.0\.hook_mlp_out"):
        measure({"a": sae}, model, make_tokens(model))
