"""Training steps on kernels equal the dense ones: losses, latents, every gradient, whole runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAEConfig

pytest.importorskip("triton")

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.sparse_topk import (
    SparseTopKTrainingSAE,
    SparseTopKTrainingSAEConfig,
)
from sae_lens_bipolar.sparse.deferred import SparseLatents
from tests.architectures.family import step_input

D_IN, D_SAE, BATCH = 6, 21, 4  # no power of two
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(architecture: str, device: str, k: int = 3) -> Any:
    """An SAE with random parameters; a gated one past its first batch, with few gates open."""
    size: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "device": device}
    torch.manual_seed(0)
    if architecture == "abstopk":
        sae: Any = AbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(**size, k=k))
    elif architecture == "sparse_topk":
        sae = SparseTopKTrainingSAE(
            SparseTopKTrainingSAEConfig(**size, k=k, use_sparse_activations=False)
        )
    else:
        sae = SignAwareGatedTrainingSAE(
            SignAwareGatedTrainingSAEConfig(**size, threshold_init_l0=3.0, l1_coefficient=0.3)
        )
    with torch.no_grad():
        for i, parameter in enumerate(sae.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=i).to(device))
    if architecture == "gated":
        with sparse.mode("dense"):
            sae.training_forward_pass(step_input(random(40, D_IN).to(device), step=1, l1=0.3))
    return sae


def step(
    sae: Any, x: torch.Tensor, dead: torch.Tensor | None, mode: sparse.Mode, autocast: bool
) -> tuple[Any, dict[str, torch.Tensor]]:
    """One forward and backward pass; the state is put back."""
    sae.zero_grad()
    state = {name: value.clone() for name, value in sae.state_dict().items()}
    with sparse.mode(mode):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            output = sae.training_forward_pass(step_input(x, dead, step=1, l1=0.3))
        output.loss.backward()
    found = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    found |= {
        "sae_out": output.sae_out.detach(),
        "latents": output.feature_acts.to_dense().detach(),
    }
    found |= {name: loss.detach() for name, loss in output.losses.items()}
    sae.load_state_dict(state)
    return output, found


def assert_same_step(
    sae: Any,
    x: torch.Tensor,
    dead: torch.Tensor | None = None,
    tolerance: float = 1e-5,
    autocast: bool = False,
) -> None:
    _, expected = step(sae, x, dead, "dense", autocast)
    output, found = step(sae, x, dead, "triton", autocast)
    assert isinstance(output.feature_acts, SparseLatents)
    assert output.feature_acts.support.reading == (torch.bfloat16 if autocast else torch.float32)
    assert found.keys() == expected.keys()
    if not autocast:  # rounding decides between neighbours there
        assert torch.equal(found["latents"] != 0, expected["latents"] != 0)
    for name, value in expected.items():
        error = (found[name].float() - value.float()).norm()
        assert error <= tolerance * value.float().norm() + 1e-7, f"{name}: {error}, {value.norm()}"


def hot(sae: Any) -> None:
    """Make one latent active in every sample."""
    with torch.no_grad():
        sae.b_enc[5] = 50.0


CASES: dict[str, Callable[[str, str], tuple[Any, torch.Tensor, Any]]] = {
    "plain": lambda name, device: (make(name, device), random(BATCH, D_IN, seed=9), None),
    "batch 1": lambda name, device: (make(name, device), random(1, D_IN, seed=9), None),
    "k 1": lambda name, device: (make(name, device, 1), random(BATCH, D_IN, seed=9), None),
    "k d_sae": lambda name, device: (make(name, device, D_SAE), random(2, D_IN, seed=9), None),
    "all dead": lambda name, device: (
        *(make(name, device), random(BATCH, D_IN, seed=9)),
        torch.ones(D_SAE, dtype=torch.bool),
    ),
    "few dead": lambda name, device: (
        *(make(name, device), random(BATCH, D_IN, seed=9)),
        torch.arange(D_SAE) % 3 == 0,
    ),
    "zeros": lambda name, device: (make(name, device), torch.zeros(2, D_IN), None),
}


@on_every_device
@pytest.mark.parametrize("architecture", ["abstopk", "sparse_topk"])
@pytest.mark.parametrize("case", CASES)
def test_top_k(device: str, architecture: str, case: str) -> None:
    sae, x, dead = CASES[case](architecture, device)
    if case == "zeros":
        with torch.no_grad():
            for parameter in (sae.b_enc, sae.b_dec):
                parameter.zero_()
    assert_same_step(sae, x.to(device), None if dead is None else dead.to(device))


@on_every_device
@pytest.mark.parametrize("architecture", ["abstopk", "sparse_topk"])
def test_one_latent_hot_in_every_sample(
    device: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens_bipolar.sparse.triton import gradients

    monkeypatch.setattr(gradients, "_SEGMENT", 16)
    sae = make(architecture, device, k=1)
    hot(sae)
    assert_same_step(sae, random(37, D_IN, seed=3).to(device))


@on_every_device
@pytest.mark.parametrize("architecture", ["abstopk", "sparse_topk", "gated"])
def test_under_autocast(device: str, architecture: str) -> None:
    sae, x = make(architecture, device), random(BATCH, D_IN, seed=9).to(device)
    assert_same_step(sae, x, tolerance=2e-2, autocast=True)


@on_every_device
@pytest.mark.parametrize("batch", [1, BATCH])
def test_gated(device: str, batch: int) -> None:
    sae, x = make("gated", device), random(batch, D_IN, seed=9).to(device)
    assert_same_step(sae, x)


@on_every_device
def test_gradients_of_the_input_and_of_latents_that_are_read(device: str) -> None:
    """Code that reads the latents, or asks for the input's gradient, gets what is dense too."""
    sae = make("abstopk", device)
    found = []
    for mode in ("dense", "triton"):
        sae.zero_grad()
        x = random(BATCH, D_IN, seed=9).to(device).requires_grad_()
        with sparse.mode(mode):  # type: ignore[arg-type]
            output = sae.training_forward_pass(step_input(x))
            (output.loss + output.feature_acts.pow(3).sum()).backward()
        found.append([x.grad, *(p.grad for p in sae.parameters())])
    for actual, expected in zip(found[1], found[0], strict=True):
        assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.slow
def test_200_steps_of_training_equal_those_of_torch() -> None:
    """The interpreter runs one of these steps in about a quarter of a second."""
    trained = []
    for mode in ("sparse", "triton"):
        sae = make("abstopk", "cpu", k=2)
        adam = torch.optim.Adam(sae.parameters(), lr=1e-3)
        losses = []
        with sparse.mode(mode):  # type: ignore[arg-type]
            for i in range(200):
                output = sae.training_forward_pass(step_input(random(3, D_IN, seed=i), step=i))
                output.loss.backward()
                torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
                adam.step()
                adam.zero_grad()
                losses.append(output.loss.item())
        trained.append((losses, {name: p.detach() for name, p in sae.named_parameters()}))
    (losses, expected), (on_kernels, found) = trained
    assert on_kernels == pytest.approx(losses, rel=1e-4)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["abstopk", "gated"])
def test_a_step_does_not_wait_for_the_device(architecture: str) -> None:
    """Except where a docstring says why: once per step each, for what cannot be sized before."""
    import warnings

    sae, x = make(architecture, "cuda"), random(64, D_IN, seed=9).cuda()
    step(sae, x, None, "triton", False)  # compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits, sparse.mode("triton"):
            warnings.simplefilter("always")
            sae.training_forward_pass(step_input(x, None, step=1, l1=0.3)).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ours = [f"{wait.filename}:{wait.lineno}" for wait in waits if "bipolar" in wait.filename]
    # The gates of each tile are counted before memory for them is had.
    assert len(ours) <= {"abstopk": 0, "gated": 1}[architecture], ours
