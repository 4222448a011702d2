"""Ranks of a run as processes of this machine, forked from the tests, which costs no import."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from sae_lens_bipolar.runs.distributed.ranks import Ranks

_context = multiprocessing.get_context("fork")


def on_ranks(size: int, work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """`work(ranks, *args)` on `size` ranks at the same time; what each of them returned.

    Args:
        work: a function of a module; what it returns is saved with torch.
        folder: an empty folder for this call.
    """
    return launched(size, _with_group, folder, work, *args)


def launched(size: int, work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """`work(*args)` in `size` processes with the environment that torchrun gives its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [(rank, size, port, work, folder, args) for rank in range(size)]
    processes = [_context.Process(target=_rank, args=one) for one in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [file.read_text() for file in sorted(folder.glob("error*"))]
    assert not errors, "\n".join(errors)
    return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(size)]


def _rank(
    rank: int, size: int, port: int, work: Callable[..., Any], folder: Path, args: Any
) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    try:
        torch.save(work(*args), folder / f"result{rank}")
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())


def _with_group(work: Callable[..., Any], *args: Any) -> Any:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    result = work(Ranks(rank, size, init_device_mesh("cpu", (size,))), *args)
    dist.destroy_process_group()
    return result
