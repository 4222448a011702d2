"""How a run's processes come together, and how they end: one message, whatever ends them."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from sae_lens_bipolar.errors import BipolarError, ConfigError, DataError, ModelError, RankError
from sae_lens_bipolar.files.names import PROGRESS
from sae_lens_bipolar.runs.checkpoints import latest_checkpoint
from sae_lens_bipolar.runs.directory import differences
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from sae_lens_bipolar.runs.interrupts import Stopped

_WAITS = timedelta(minutes=30)  # for the slowest rank, which may be loading a language model
_SAME = ("sae-lens-bipolar", "sae-lens", "transformer-lens", "torch")  # versions
_EXIT = 2
_POLL = 0.1  # seconds
_REFUSALS = (ConfigError, DataError, ModelError, RankError)  # which every rank comes to
_LINGERS = 20.0  # seconds that the first rank waits for others to end, when its run is refused


@contextmanager
def joined(device: str, config: Mapping[str, Any], run_dir: Path) -> Iterator[Ranks]:
    """The ranks of this run, whose processes have found each other and agree.

    However the block ends, one rank says why, and the others end without a word.

    Args:
        device: of the run; with "cuda" each rank has the GPU of its `LOCAL_RANK`.
        config: what must be the same on all ranks, beside the versions.
        run_dir: where the message looks for a checkpoint to go on from.

    Raises:
        RankError: if ranks differ, or one of them has ended.
        SystemExit: on a rank that is not the first to end.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    joins = not dist.is_initialized()  # Ray Train joins its workers before they are called
    store, rank, size = _met()
    if rank:
        logging.getLogger().setLevel(logging.ERROR)  # every line would come once per rank
    with _one_voice(store, rank, size, run_dir):
        _require_agreement(store, rank, size, config)
        if joins:
            dist.init_process_group(
                "nccl" if kind == "cuda" else "gloo",
                store=PrefixStore("ranks", store),
                rank=rank,
                world_size=size,
                timeout=_WAITS,
            )
        yield Ranks(rank, size, init_device_mesh(kind, (size,)))
        if joins:
            dist.destroy_process_group()


def _met() -> tuple[Store, int, int]:
    """A store that the processes of this run share, the rank of this one, and their number.

    The store is empty. torchrun keeps one store while it restarts ranks, with all that ended ones
    have written (torch 2.13, distributed/elastic/rendezvous/dynamic_rendezvous.py:1209; torch's
    issue 135712), and counts restarts by node; so ranks agree on a new part of it. Each says that
    it is here; the first repeats who is here, until all have found themselves.

    Raises:
        RankError: if a rank does not come.
    """
    if dist.is_initialized():
        store, rank, size = _get_default_store(), dist.get_rank(), dist.get_world_size()
    else:
        store, rank, size = next(iter(rendezvous("env://", timeout=_WAITS)))
    own = uuid4().hex
    store.set(f"here{rank}", own)
    latest = time.monotonic() + _WAITS.total_seconds()
    while time.monotonic() < latest:
        if rank == 0:
            here = [store.get(f"here{other}").decode() for other in range(size)]
            store.set("here", json.dumps(here))
        else:
            here = json.loads(store.get("here"))
            if here[rank] == own:
                store.set(f"{here[0]}/{rank}", own)
        if here[rank] == own and store.check([f"{here[0]}/{other}" for other in range(1, size)]):
            return PrefixStore(here[0], store), rank, size
        time.sleep(_POLL)
    raise RankError(f"not all of {size} ranks have started within {_WAITS}: start them together")


def _require_agreement(store: Store, rank: int, size: int, config: Mapping[str, Any]) -> None:
    """Raise `RankError`, on every rank, if configuration or versions are not the same on all."""
    said = {"config": config, "versions": {name: version(name) for name in _SAME}}
    store.set(f"said{rank}", json.dumps(said, default=str))
    first = json.loads(store.get("said0"))
    for other in range(1, size):
        found = list(differences(first, json.loads(store.get(f"said{other}"))))
        if found:
            fields = "; ".join(f"{key}: {a!r} and {b!r}" for key, a, b in found)
            raise RankError(
                f"ranks 0 and {other} do not agree ({fields}): start all ranks with one command, "
                "in equal environments"
            )


@contextmanager
def _one_voice(store: Store, rank: int, size: int, run_dir: Path) -> Iterator[None]:
    try:
        yield
    except (BipolarError, Stopped) as error:
        is_first = _is_first_to_end(store)
        if rank == 0 and isinstance(error, _REFUSALS):
            _linger(store, size)
        if is_first:
            raise
        raise SystemExit(getattr(error, "exit_code", _EXIT)) from None
    except RuntimeError as error:
        if not _is_of_ranks(error):
            raise
        if not _is_first_to_end(store):
            raise SystemExit(_EXIT) from None
        newest = latest_checkpoint(run_dir / PROGRESS)
        kept = f"the last whole checkpoint is {newest}" if newest else "nothing was saved before"
        raise RankError(
            f"another rank of this run has ended, so training cannot go on; {kept}. The launcher's "
            "report names the rank; the same command continues, on any number of ranks "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


def _is_first_to_end(store: Store) -> bool:
    try:
        return store.add("ended", 1) == 1
    except Exception:  # the store ended with its process
        return True


def _linger(store: Store, size: int) -> None:
    """Wait until the others have ended too: they ask the store, which may end with this process."""
    latest = time.monotonic() + _LINGERS
    with contextlib.suppress(RuntimeError):
        while store.add("ended", 0) < size and time.monotonic() < latest:
            time.sleep(_POLL)


def _is_of_ranks(error: RuntimeError) -> bool:
    """Whether a collective failed since another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
