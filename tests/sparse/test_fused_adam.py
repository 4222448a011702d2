"""The fused flag reaches the optimizers of SAEs that ask for it, and no others."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW
from torch.testing import assert_close

from sae_lens_bipolar.sparse import fused_adam


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    fused_adam.enable()
    yield
    fused_adam.enable()


def parameters(asking: bool) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 5), (5,))]
    if asking:
        fused_adam.ask_for(made[0])
    return made


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_an_optimizer_that_is_asked_to_is_fused_and_does_the_same() -> None:
    ours, theirs = parameters(True), parameters(False)
    fused, plain = Adam(ours, lr=0.1), Adam(theirs, lr=0.1)
    train(fused, 20)
    train(plain, 20)
    assert fused.param_groups[0]["fused"] is True
    assert plain.param_groups[0]["fused"] is None
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_an_optimizer_that_has_stepped_before_goes_on_from_its_state() -> None:
    ours, theirs = parameters(False), parameters(False)
    late, plain = Adam(ours, lr=0.1), Adam(theirs, lr=0.1)
    train(late, 5)
    fused_adam.ask_for(ours[1])
    train(late, 5, seed=2)
    assert late.param_groups[0]["fused"] is True
    train(plain, 5)
    train(plain, 5, seed=2)
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}, {"foreach": False}])
def test_a_choice_that_was_made_is_kept(options: dict[str, Any]) -> None:
    optimizer = Adam(parameters(True), **options)
    train(optimizer, 1)
    assert not optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("option", ["differentiable", "capturable"])
def test_what_excludes_the_fused_optimizer_is_kept(option: str) -> None:
    options: dict[str, Any] = {option: True}
    optimizer = Adam(parameters(True), **options)
    fused_adam._fuse(optimizer, (), {})
    assert optimizer.param_groups[0]["fused"] is None


def test_one_parameter_that_cannot_be_fused_keeps_its_whole_group_plain() -> None:
    """Torch fuses on CPU and CUDA, and no complex numbers."""
    for other in (torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64)):
        one, second = parameters(True)
        optimizer = Adam([{"params": [one, nn.Parameter(other)]}, {"params": [second]}])
        fused_adam.ask_for(second)
        fused_adam._fuse(optimizer, (), {})
        assert [group["fused"] for group in optimizer.param_groups] == [None, True]


def test_a_count_of_steps_that_is_a_number_becomes_what_the_fused_step_takes() -> None:
    optimizer = Adam(parameters(True))
    first, second = optimizer.param_groups[0]["params"]
    optimizer.state[first]["step"] = 7
    fused_adam._fuse(optimizer, (), {})
    assert torch.equal(optimizer.state[first]["step"], torch.tensor(7.0))
    assert "step" not in optimizer.state[second]


def test_other_optimizers_are_left_alone() -> None:
    optimizer = AdamW(parameters(True))
    train(optimizer, 1)
    assert optimizer.param_groups[0]["fused"] is None


def test_disable_is_the_end_of_it() -> None:
    fused_adam.disable()
    fused_adam.disable()
    optimizer = Adam(parameters(True))
    train(optimizer, 1)
    assert optimizer.param_groups[0]["fused"] is None


def test_sae_lens_and_torch_still_leave_the_flag_unset() -> None:
    """When this fails, upstream fuses by itself and `fused_adam` can go."""
    import inspect

    from sae_lens.training import sae_trainer

    source = inspect.getsource(sae_trainer.SAETrainer.__init__)
    assert "self.optimizer = Adam(" in source
    assert "fused" not in source
    unasked = Adam(parameters(False))
    train(unasked, 1)
    assert not unasked.param_groups[0]["fused"]
