"""JumpReLU with an L0 target computes what SAELens's own JumpReLU does."""

from math import tanh

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from torch.testing import assert_close

from recipes.abstopk.jumprelu import JumpReLUAtL0TrainingSAE, JumpReLUAtL0TrainingSAEConfig
from recipes.abstopk.jumprelu_step import Gate, TanhSparsity

D_IN, D_SAE, BATCH = 5, 12, 30


def settings(mode: str, to_input: bool, pre_act: float | None) -> dict[str, object]:
    return {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float64",
        "jumprelu_bandwidth": 0.7,
        "jumprelu_sparsity_loss_mode": mode,
        "jumprelu_ste_to_input": to_input,
        "jumprelu_tanh_scale": 2.5,
        "pre_act_loss_coefficient": pre_act,
        "target_l0": 3.0 if mode == "quadratic" else None,
    }


def loss_and_gradients(sae: TrainingSAE, x: torch.Tensor) -> dict[str, torch.Tensor]:
    dead = torch.arange(D_SAE) % 4 == 0
    found = sae.training_forward_pass(
        TrainStepInput(x, {"l0": 0.3}, dead, 0, is_logging_step=False)
    )
    names, parameters = zip(*sae.named_parameters(), strict=True)
    gradients = torch.autograd.grad(found.loss, parameters)
    of = {f"gradient of {name}": value for name, value in zip(names, gradients, strict=True)}
    return {"z": found.feature_acts, **found.losses, **of}


@pytest.mark.parametrize("pre_act", [None, 0.2])
@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("mode", ["tanh", "step", "quadratic"])
@pytest.mark.parametrize("shape", [(BATCH, D_IN), (6, BATCH // 6, D_IN)])
def test_losses_and_every_gradient_are_saelens(
    mode: str, to_input: bool, pre_act: float | None, shape: tuple[int, ...]
) -> None:
    fields = settings(mode, to_input, pre_act)
    stock = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig.from_dict(fields))
    ours = JumpReLUAtL0TrainingSAE(JumpReLUAtL0TrainingSAEConfig.from_dict(fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in stock.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        stock.threshold.abs_()
    ours.load_state_dict(
        stock.state_dict() | ours.l0_controller.state_dict(prefix="l0_controller.")
    )
    ours.l0_controller.has_seen_data.fill_(1.0)  # its start from data is not SAELens's
    x = torch.randn(shape, generator=generator, dtype=torch.float64)

    expected, found = loss_and_gradients(stock, x), loss_and_gradients(ours, x)

    assert found.keys() == expected.keys()
    assert 0 < expected["z"].bool().double().mean() < 1
    for name, value in expected.items():
        assert_close(
            found[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_gate_of_one_latent_by_hand() -> None:
    u = torch.tensor([[0.5], [1.0], [1.2], [1.4], [1.5], [3.0]], requires_grad=True)
    threshold = torch.tensor([1.0], requires_grad=True)
    z = Gate.apply(u, threshold, 1.0, True)
    of_u, of_threshold = torch.autograd.grad(z.sum(), (u, threshold))
    assert z.flatten().tolist() == pytest.approx([0, 0, 1.2, 1.4, 1.5, 3.0])
    # The window of bandwidth 1 around 1 is open: 1.0, 1.2 and 1.4 are in it, 0.5 and 1.5 are not.
    assert of_u.flatten().tolist() == pytest.approx([0, 1, 2, 2, 1, 1])
    assert of_threshold.tolist() == pytest.approx([-3.0])


def test_the_sparsity_of_one_token_by_hand() -> None:
    z = torch.tensor([[0.0, 0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    norms = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    of_z, of_norms = torch.autograd.grad(TanhSparsity.apply(z, norms, 1.0), (z, norms))
    slope = [1 - tanh(0.5) ** 2, 1 - tanh(1.0) ** 2]
    assert of_z[0].tolist() == pytest.approx([2.0, slope[0], 0.5 * slope[1]])
    assert of_norms.tolist() == pytest.approx([0.0, 0.5 * slope[0], 2.0 * slope[1]])


def test_thresholds_start_at_the_target_and_then_the_sparsity_weight_follows_it() -> None:
    fields = settings("tanh", True, None) | {"l0_target": 3, "l0_coefficient": 0.3}
    sae = JumpReLUAtL0TrainingSAE(JumpReLUAtL0TrainingSAEConfig.from_dict(fields))
    x = torch.randn(200, D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = TrainStepInput(x, {"l0": 0.3}, None, 0, is_logging_step=False)
    first = sae.training_forward_pass(step)
    assert first.feature_acts.bool().sum(-1).double().mean().item() == pytest.approx(3, abs=0.2)

    weights = {}
    for thresholds in (0.0, 100.0):  # far more, and far fewer, latents fire than shall
        with torch.no_grad():
            sae.set_thresholds(torch.full((D_SAE,), thresholds))
        outputs = [sae.training_forward_pass(step) for _ in range(30)]
        assert sae.threshold.unique().tolist() == [thresholds]
        weights[thresholds] = outputs[-1].metrics["l0_coefficient"]
    assert weights[0.0] > 0.3 > weights[100.0]
