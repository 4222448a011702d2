"""Which tensors a change of dtype leaves in float32, and what is in them afterwards."""

from typing import Any

import pytest
import torch
from torch import nn

from sae_lens_bipolar.architectures.training.precision import in_float64, kept_in_float32

VALUE = 1.0 + 2.0**-20  # not a number of bfloat16


class Kept(nn.Module):
    """A parameter and a buffer that are kept, and one of each that are not."""

    kept_buffer: torch.Tensor
    other_buffer: torch.Tensor

    def __init__(self, dtype: torch.dtype, or_wider: bool):
        super().__init__()
        self.or_wider = or_wider
        self.kept = nn.Parameter(torch.full((3,), VALUE, dtype=dtype))
        self.other = nn.Parameter(torch.full((3,), VALUE, dtype=dtype))
        self.register_buffer("kept_buffer", torch.full((2,), VALUE, dtype=dtype))
        self.register_buffer("other_buffer", torch.full((2,), VALUE, dtype=dtype))

    def _apply(self, *args: Any, **kwargs: Any) -> "Kept":
        names = ("kept", "kept_buffer", "absent")
        with kept_in_float32(self, *names, or_wider=self.or_wider):
            super()._apply(*args, **kwargs)
        return self


@pytest.mark.parametrize("or_wider", [False, True])
@pytest.mark.parametrize("before", [torch.float32, torch.float64])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_named_tensors_keep_their_float32_values(
    to: torch.dtype, before: torch.dtype, or_wider: bool
) -> None:
    module = Kept(before, or_wider)
    parameter = module.kept
    module.to(to)
    kept = torch.float64 if or_wider and to == torch.float64 else torch.float32
    assert (module.kept.dtype, module.kept_buffer.dtype) == (kept, kept)
    assert (module.other.dtype, module.other_buffer.dtype) == (to, to)
    assert module.kept is parameter, "the optimizer's own"
    for tensor in (module.kept, module.kept_buffer):
        assert torch.equal(tensor.double(), torch.full_like(tensor, VALUE).double())


def test_a_float64_that_was_in_bfloat16_on_the_way_keeps_its_value() -> None:
    module = Kept(torch.float32, or_wider=False)
    module.to(torch.bfloat16).to(torch.float64)
    assert torch.equal(module.kept, torch.full((3,), VALUE))
    assert not torch.equal(module.other, torch.full((3,), VALUE).double())
    module.to("meta")
    assert module.kept.device == module.kept_buffer.device == torch.device("meta")
    assert module.kept.dtype == torch.float32


def test_a_tensor_that_is_gone_afterwards_is_passed_over() -> None:
    module = Kept(torch.float32, or_wider=False)
    with kept_in_float32(module, "kept", "kept_buffer"):
        del module.kept
        module.kept_buffer = module.kept_buffer.bfloat16()
    assert not hasattr(module, "kept")
    assert module.kept_buffer.dtype == torch.float32


def test_sums_in_float64_stay_on_the_device_where_it_has_them() -> None:
    for x in (torch.ones(2), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, device="meta")):
        found = in_float64(x)
        assert (found.dtype, found.device, found.shape) == (torch.float64, x.device, x.shape)
