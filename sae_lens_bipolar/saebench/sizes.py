"""Batch sizes from the memory that is free."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_lens_bipolar.saebench.options import CommonOptions

_SHARE = 0.25  # of the free memory, for one batch
_COPIES = 4  # buffers [batch, context, d_sae] alive at once: pre-activations, latents, mask, copy
_FALLBACK = 2 << 30  # bytes, where the system does not tell
_MOST_SAE, _MOST_LLM = 125, 32  # SAEBench's own: 125 for SAEs, 32 for its larger models


@dataclass(frozen=True)
class Sizes:
    """Batch sizes of one run."""

    sae_batch_size: int  # sequences of context_length that an SAE encodes at once
    llm_batch_size: int  # sequences of context_length in a forward pass
    llm_batch_size_at: Callable[[int], int]  # of sequences of another length


def choose_sizes(options: CommonOptions, d_sae: int, d_vocab: int) -> Sizes:
    """The configured batch sizes; for None, the largest power of two that fits in free memory."""
    free = free_memory(options.device) * _SHARE
    item = torch.finfo(getattr(torch, options.llm_dtype)).bits // 8
    # Core and unlearning hold [batch, context, d_sae] too, and every forward pass its logits.
    wide = 4 * max(_COPIES * d_sae, _COPIES * d_vocab)

    def llm_at(length: int) -> int:
        return options.llm_batch_size or _fitting(free, wide * length, _MOST_LLM)

    sae = options.sae_batch_size
    sae = sae or _fitting(free, item * _COPIES * d_sae * options.context_length, _MOST_SAE)
    return Sizes(sae, llm_at(options.context_length), llm_at)


def _fitting(free: float, per_sequence: int, most: int) -> int:
    if per_sequence * most <= free:
        return most
    fitting = max(int(free // per_sequence), 1)
    return min(1 << (fitting.bit_length() - 1), most)


def free_memory(device: str) -> int:
    """Bytes free on `device`; for the CPU no more than the process's control group leaves."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return min(_available(), _left_in_group())


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _FALLBACK


def _left_in_group() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cache = (group / "memory.stat").read_text(encoding="ascii")
        reclaimable = next(
            (int(line.split()[1]) for line in cache.splitlines() if line.startswith("file ")), 0
        )
        return max(int(most) - used + reclaimable, 1 << 28)
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return 1 << 62
