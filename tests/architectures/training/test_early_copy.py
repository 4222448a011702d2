"""Numbers that were copied early are those of that moment."""

import copy

import pytest
import torch

from sae_lens_bipolar.architectures.training.early_copy import EarlyCopy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_written_later_is_not_seen(device: str) -> None:
    numbers = torch.tensor([[1.5, -2.0]], device=device, requires_grad=True)
    early = EarlyCopy(numbers)
    with torch.no_grad():
        numbers.zero_()
    assert early.read() == early.read() == [1.5, -2.0]
    assert copy.deepcopy(early).read() == [1.5, -2.0]
    assert EarlyCopy(torch.tensor(3, device=device)).read() == [3]
