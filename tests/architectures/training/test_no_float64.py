"""Devices without float64 (Apple's MPS): sums go through the CPU there, with the same results."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_lens_bipolar.architectures.training.precision import in_float64
from sae_lens_bipolar.evaluation.averages import Averages, mean_nmse, nmse
from sae_lens_bipolar.polarity.antipodal import antipodal_pairs
from sae_lens_bipolar.polarity.counting import CensusCounter
from sae_lens_bipolar.polarity.merging import _mse
from sae_lens_bipolar.steering.directions import _pooled, weights
from sae_lens_bipolar.steering.reading import Batch
from tests.test_layout import MODULES

MPS = torch.device("mps")


class OnMPS(torch.Tensor):
    """A tensor that behaves as on MPS: no float64, no arithmetic with tensors of the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return MPS
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.double or any(
            a is torch.float64 for a in (*args, *kwargs.values())
        ):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        plain = [a for a in args if isinstance(a, torch.Tensor) and not isinstance(a, OnMPS)]
        if name not in ("__get__", "__set__") and any(a.ndim for a in plain):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs)


_TO = torch.Tensor.to


@pytest.fixture(autouse=True)
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors can be moved to the stand-in, which the torch of this machine may not know."""
    monkeypatch.setattr(torch.Tensor, "to", _moved)


def _moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    plain, like = tensor.as_subclass(torch.Tensor), args[0] if args else None
    if isinstance(like, torch.Tensor):
        moved = _TO(plain, like.as_subclass(torch.Tensor))
        return moved.as_subclass(OnMPS) if isinstance(like, OnMPS) else moved
    where = [a for a in (*args, *kwargs.values()) if isinstance(a, str | torch.device)]
    types = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
    on_mps = torch.device(where[0]) == MPS if where else isinstance(tensor, OnMPS)
    if on_mps and torch.float64 in types:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    moved = _TO(plain, types[0]) if types else plain
    return moved.as_subclass(OnMPS) if on_mps else moved


def mps(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().as_subclass(OnMPS)


def test_the_stand_in_refuses_what_mps_refuses() -> None:
    x = mps(torch.randn(3, 4))
    assert x.device.type == "mps"
    assert (x * 2 + x).device.type == "mps"
    for to_float64 in (lambda: x.double(), lambda: x.to(torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            to_float64()
    with pytest.raises(RuntimeError, match="same device"):
        _ = x + torch.randn(3, 4)
    assert type(x.cpu()) is torch.Tensor


def test_float64_of_a_device_without_it_is_on_the_cpu() -> None:
    x = torch.randn(5)
    there = in_float64(mps(x))
    assert there.dtype == torch.float64
    assert there.device.type == "cpu"
    assert torch.equal(there, in_float64(x))


def test_averages_of_a_reconstruction() -> None:
    torch.manual_seed(0)
    x, l0 = torch.randn(40, 6) + 1e3, torch.randint(0, 5, (40,)).float()
    xhat = x + 0.1 * torch.randn(40, 6)
    here, there = Averages(), Averages()
    for part in (slice(0, 25), slice(25, 40)):
        here.add(x[part], xhat[part], l0[part])
        there.add(mps(x[part]), mps(xhat[part]), mps(l0[part]))
    assert there.result() == here.result()
    assert mean_nmse(mps(x), mps(xhat)) == mean_nmse(x, xhat)
    assert torch.equal(nmse(mps(x), mps(xhat)).cpu(), nmse(x, xhat))


def test_difference_in_means() -> None:
    torch.manual_seed(0)
    x, tokens = torch.randn(2, 5, 3), torch.arange(10).view(2, 5)
    keep = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]).bool()
    for pool in ("mean", "last"):
        expected = _pooled(Batch(x, tokens, keep), pool)
        batch = Batch(mps(x), mps(tokens), mps(keep))
        assert torch.equal(_pooled(batch, pool).cpu(), expected)
        assert torch.equal(weights(batch, pool), weights(Batch(x, tokens, keep), pool))


def test_pairs_errors_and_counts() -> None:
    torch.manual_seed(0)
    decoder = torch.randn(6, 4)
    decoder = torch.cat([decoder, -decoder])
    expected = antipodal_pairs(decoder, decoder)
    found = antipodal_pairs(mps(decoder), mps(decoder))
    assert torch.equal(found.pairs, expected.pairs)
    x = torch.randn(9, 4)

    def sae(device: torch.device) -> Any:
        return SimpleNamespace(device=device, encode=lambda t: t * 2, decode=lambda t: t / 3)

    assert _mse(sae(MPS), x) == _mse(sae(torch.device("cpu")), x)
    here, there = CensusCounter(4), CensusCounter(4)
    here.add(x)
    there.add(mps(x))
    assert there.result().to_dict() == here.result().to_dict()


# Tensors that are on the CPU wherever the SAE is: censuses, marks of tokens, cosines of `.cpu()`,
# the explorer's statistics and the firings counted there.
ON_THE_CPU = ("self.positive_count", "self.negative_count", "self.census.alive", "for m in marks")
ON_THE_CPU += ("(decoder_cosine + encoder_cosine)", "else tensor).double()")
ON_THE_CPU += ("size.double()", "statistics.largest", "largest[side, latent]")


def test_nothing_else_becomes_float64_on_its_device() -> None:
    lines = [
        (file, line)
        for file in MODULES
        for line in file.read_text(encoding="utf-8").splitlines()
        if ".double()" in line
    ]
    assert lines
    wrong = [
        f"{file}: {line.strip()}"
        for file, line in lines
        if ".cpu().double()" not in line and not any(known in line for known in ON_THE_CPU)
    ]
    assert not wrong, "take in_float64: " + "\n".join(wrong)
