"""The gated step on open gates equals the dense one: losses, gradients, latents, whole runs."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from sae_lens import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import sae_lens_bipolar  # noqa: F401
from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAE, GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)
from sae_lens_bipolar.sparse.deferred import SparseLatents
from tests.architectures import family

D_IN, D_SAE, BATCH = 12, 160, 37

CASES: list[tuple[str, dict[str, Any]]] = [
    ("sign_aware_gated", {}),
    ("sign_aware_gated", {"symmetry": "gain"}),
    ("sign_aware_gated", {"symmetry": "none"}),
    ("sign_aware_gated", {"two_sided_gate": False}),
    ("sign_aware_gated", {"aux_coefficient": 0.0}),
    ("sign_aware_gated", {"detach_aux_decoder": False, "detach_l1_decoder": False}),
    ("sign_aware_gated", {"apply_b_dec_to_input": False}),
    ("sign_aware_gated", {"normalize_activations": "layer_norm"}),
    ("gated_l0", {}),
    ("gated_l0", {"apply_b_dec_to_input": False}),
]


def make_sae(architecture: str, dtype: str = "float64", **options: Any):
    """An SAE past its first batch whose gates are mostly shut."""
    torch.manual_seed(0)
    size = {"d_in": D_IN, "d_sae": D_SAE, "dtype": dtype, "l1_coefficient": 0.3}
    if architecture == "gated_l0":
        sae: Any = GatedL0TrainingSAE(
            GatedL0TrainingSAEConfig(**size, threshold_init_l0=8.0, **options)
        )
    else:
        sae = SignAwareGatedTrainingSAE(
            SignAwareGatedTrainingSAEConfig(**size, threshold_init_l0=8.0, **options)
        )
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
    sae.training_forward_pass(step_input(batch()))
    return sae


def batch(seed: int = 1) -> torch.Tensor:
    return torch.randn(
        BATCH, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


step_input = partial(family.step_input, step=1, l1=0.3)


def step(sae: Any, x: torch.Tensor, mode: sparse.Mode):
    sae.zero_grad()
    state = {name: value.clone() for name, value in sae.state_dict().items()}
    with sparse.mode(mode):
        output = sae.training_forward_pass(step_input(x))
        output.loss.backward()
        # read now: hidden_pre is computed from the parameters as they are
        matrices = (output.feature_acts + 0, output.hidden_pre + 0)
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.load_state_dict(state)
    return output, gradients, matrices


@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_losses_gradients_and_latents_equal_the_dense_step(
    architecture: str, options: dict[str, Any]
) -> None:
    sae, x = make_sae(architecture, **options), batch(2)
    dense, dense_gradients, expected = step(sae, x, "dense")
    found, gradients, matrices = step(sae, x, "sparse")
    on_pairs = options.get("normalize_activations") != "layer_norm"
    assert isinstance(found.feature_acts, SparseLatents) == on_pairs
    assert_close(found.losses, dense.losses)
    assert gradients.keys() == dense_gradients.keys()
    for name, gradient in dense_gradients.items():
        assert_close(gradients[name], gradient, msg=lambda m, n=name: f"{n}: {m}")
    assert_close(found.sae_out, dense.sae_out)
    assert_close(matrices, expected)
    assert 0 < (dense.feature_acts != 0).sum(-1).double().mean() < 40


@pytest.mark.parametrize(
    ("architecture", "normalisation"),
    [("sign_aware_gated", "none"), ("sign_aware_gated", "layer_norm"), ("gated_l0", "none")],
)
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_heads_of_hook_z_are_the_flat_activations(
    architecture: str, mode: sparse.Mode, normalisation: str
) -> None:
    """Errors are means over heads too, as SAELens takes the squared error."""
    n_heads = 3
    options = {"b_dec_init": "mean", "normalize_activations": normalisation}
    flat = make_sae(architecture, **options)
    heads = make_sae(architecture, reshape_activations="hook_z", **options)
    heads.turn_on_forward_pass_hook_z_reshaping()
    for first_batch in (True, False):
        if first_batch:
            for sae in (flat, heads):
                sae.l0_controller.has_seen_data.zero_()
        x = batch(6) + 0.5
        flat_found, flat_gradients, flat_matrices = step(flat, x, mode)
        found, gradients, matrices = step(heads, x.view(BATCH, n_heads, -1), mode)
        assert found.sae_out.shape == (BATCH, n_heads, D_IN // n_heads)
        assert_close(found.sae_out.flatten(1), flat_found.sae_out)
        assert_close(matrices, flat_matrices)
        expected = {
            name: loss if name == "l1_loss" else loss / n_heads
            for name, loss in flat_found.losses.items()
        }
        assert_close(found.losses, expected)
        assert_close(found.loss, sum(expected.values()))
    assert gradients.keys() == flat_gradients.keys()


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_gradients_on_heads_of_hook_z(mode: sparse.Mode) -> None:
    """Without sparsity term, those of the flat activations divided by the number of heads."""
    flat, heads = make_sae("gated_l0"), make_sae("gated_l0", reshape_activations="hook_z")
    heads.turn_on_forward_pass_hook_z_reshaping()
    gradients = []
    for sae, x in ((flat, batch(6)), (heads, batch(6).view(BATCH, 3, -1))):
        sae.zero_grad()
        with sparse.mode(mode):
            sae.training_forward_pass(
                replace(step_input(x), coefficients={"l1": 0})
            ).loss.backward()
        gradients.append({name: p.grad for name, p in sae.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient / 3, msg=lambda m, n=name: f"{n}: {m}")


def test_gated_l0_is_stock_gated_in_loss_and_every_gradient() -> None:
    sae, x = make_sae("gated_l0"), batch(3)
    stock = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float64"))
    stock.load_state_dict({n: v for n, v in sae.state_dict().items() if "l0_controller" not in n})
    expected = stock.training_forward_pass(step_input(x))
    expected.loss.backward()
    wanted = {name: p.grad for name, p in stock.named_parameters()}
    for mode in ("dense", "sparse"):
        found, gradients, _ = step(sae, x, mode)
        assert_close(found.losses, expected.losses)
        for name, gradient in wanted.items():
            assert_close(gradients[name], gradient)


def trainer(sae: Any, steps: int) -> SAETrainer:
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH,
        device="cpu",
        autocast=False,
        lr=3e-3,
        lr_end=3e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=20,
        feature_sampling_window=1000,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=2,
    )
    return SAETrainer(cfg, sae, (batch(i) for i in range(steps)))


@pytest.mark.parametrize("architecture", ["sign_aware_gated", "gated_l0"])
def test_200_trainer_steps_end_alike(architecture: str) -> None:
    ends = {}
    for mode in ("dense", "sparse"):
        sae = make_sae(architecture, l0_target=8.0)
        run = trainer(sae, 200)
        with sparse.mode(mode):
            run.fit()
        ends[mode] = (sae.state_dict(), run.act_freq_scores, run.dead_neurons.sum())
    for name, value in ends["dense"][0].items():
        assert_close(ends["sparse"][0][name], value, rtol=1e-4, atol=1e-4)
    assert_close(ends["sparse"][1], ends["dense"][1])
    assert ends["sparse"][2] == ends["dense"][2]


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.layout == torch.strided:
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("architecture", ["sign_aware_gated", "gated_l0"])
def test_no_dense_matrix_of_latents_in_a_trainer_step(architecture: str) -> None:
    sae = make_sae(architecture)
    x = torch.randn(3000, D_IN, dtype=torch.float64)
    run = trainer(sae, 1)
    with sparse.mode("sparse"), _Largest() as largest:
        run.step(x)
    assert largest.numel < len(x) * D_SAE / 2


@pytest.mark.parametrize("hook", ["hook_sae_acts_pre", "hook_sae_acts_post"])
def test_hooks_on_latents_bring_the_dense_step(hook: str) -> None:
    sae, x = make_sae("sign_aware_gated"), batch(4)
    seen = []
    getattr(sae, hook).add_hook(lambda value, hook: seen.append(value.shape))
    found, _, _ = step(sae, x, "sparse")
    assert seen == [(BATCH, D_SAE)]
    assert not isinstance(found.feature_acts, SparseLatents)


def test_auto_is_dense_while_gates_are_open_and_sparse_when_they_have_shut() -> None:
    sae = SignAwareGatedTrainingSAE(
        SignAwareGatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, threshold_init=1e-3)
    )
    x = batch(5).float()
    outputs = [sae.training_forward_pass(step_input(x)) for _ in range(2)]
    assert not any(isinstance(o.feature_acts, SparseLatents) for o in outputs)
    with torch.no_grad():
        sae.log_threshold.fill_(1.5)
    outputs = [sae.training_forward_pass(step_input(x)) for _ in range(60)]
    assert isinstance(outputs[-1].feature_acts, SparseLatents)
