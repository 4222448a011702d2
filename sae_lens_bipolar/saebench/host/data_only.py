"""What is read from files while a suite runs is data: tensors, numbers and text, never code.

Works around sae_bench 0.6.0, which unpickles whatever lies where it expects its own files:
evals/absorption/common.py:73 with `weights_only=False`, evals/scr_and_tpp/main.py:646,
evals/unlearning/main.py:57 and evals/unlearning/utils/metrics.py:718 with `pickle.load`.
"""

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.inputs.patching import replaced

_MODULE = "module of sae_bench"  # key of a probe: its class's name, beside its parameters
_Build = Callable[[Mapping[str, torch.Tensor]], torch.nn.Module]


@contextmanager
def data_only() -> Iterator[None]:
    """`torch.load` always with `weights_only=True`, and SAEBench's `pickle` through it.

    Probes, which SAEBench saves as whole objects, are written as their parameters and built again
    from them. Everything is as before afterwards.

    Raises:
        BenchError: if a file that is read holds more than data; names it.
    """
    load, save = torch.load, torch.save

    def load_data(f: Any, *args: Any, weights_only: Any = None, **kwargs: Any) -> Any:
        try:
            return _rebuilt(load(f, *args, weights_only=True, **kwargs))
        except pickle.UnpicklingError as error:
            name = getattr(f, "name", f)
            raise BenchError(f"{name} holds more than data, and was not read: {error}") from error

    def save_data(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        save(_plain(obj), f, *args, **kwargs)

    stand_in = SimpleNamespace(
        load=load_data, dump=save_data, loads=_refused, dumps=_refused, Unpickler=_refused
    )
    with ExitStack() as stack:
        for module in (torch, torch.serialization):
            stack.enter_context(replaced(module, load=load_data, save=save_data))
        for module in _modules_with_pickle():
            stack.enter_context(replaced(module, pickle=stand_in))
        yield


def _modules_with_pickle() -> list[Any]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("sae_bench.") and getattr(module, "pickle", None) is pickle
    ]


def _refused(*_: Any, **__: Any) -> Any:
    raise BenchError("SAEBench unpickles in a way that is not known here: it was stopped")


def _builders() -> dict[str, _Build]:
    from sae_bench.evals.absorption.probing import LinearProbe
    from sae_bench.evals.sparse_probing.probe_training import Probe

    def linear_probe(state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        n_out, n_in = state["fc.weight"].shape
        return LinearProbe(n_in, n_out)

    def probe(state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        return Probe(state["net.weight"].shape[1], state["net.weight"].dtype)

    return {"LinearProbe": linear_probe, "Probe": probe}


def _plain(value: Any) -> Any:
    """`value` without objects that only a pickle can hold."""
    if isinstance(value, torch.nn.Module):
        return {_MODULE: type(value).__name__, "state": dict(value.state_dict())}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _rebuilt(value: Any) -> Any:
    if isinstance(value, dict) and _MODULE in value:
        return _built(value)
    if isinstance(value, dict):
        return {key: _rebuilt(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_rebuilt, value))
    return value


def _built(value: Mapping[str, Any]) -> torch.nn.Module:
    try:
        with torch.device("meta"):  # draws no random number
            module = _builders()[value[_MODULE]](value["state"])
        module.load_state_dict(value["state"], assign=True)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise BenchError(f"a file holds a probe that is not known here: {error!r}") from error
    return module.requires_grad_(True)
