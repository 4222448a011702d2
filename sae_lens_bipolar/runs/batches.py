"""Training batches of mixed activations, with a state that a checkpoint can hold; and read ahead
where that is wanted."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file

from sae_lens_bipolar.errors import ActivationError
from sae_lens_bipolar.files.names import MIXING_BUFFER
from sae_lens_bipolar.runs.cached import CachedStore

Batch = dict[str, torch.Tensor]


class ResumableBatches:
    """The activation store's batches, `{key: [batch, d_in]}`, from where a checkpoint was.

    The batches are those of SAELens's `get_multi_hook_data_loader`. Its mixing buffer and random
    state are in no checkpoint, so a resumed run would see other batches. Here the buffer is saved,
    and the generator is seeded anew at every checkpoint, in an uninterrupted run too; what else
    makes up the state is the number of rows read, which SAELens saves.

    SAELens's own thread, `prefetch_llm_batches`, reads past checkpoints, and how far is chance.
    This one stops before each, so that batches are the same with it and without it.

    Args:
        store: reads the text, or a cache of activations.
        seed: of the order of activations.
        copies: for each key the hook and the device of its activations.
        ahead: batches that a thread computes while SAEs train on the one before.
        steps_left: counts the batches, from the next one on, that come before a checkpoint or the
            end.
        checkpoint: to go on from. None, or one without a buffer: an empty buffer.

    Raises:
        ActivationError: if a batch holds NaN or infinite values; names the hook and the batch.
    """

    def __init__(
        self,
        store: ActivationsStore | CachedStore,
        seed: int,
        copies: Mapping[str, tuple[str, torch.device]],
        ahead: int,
        steps_left: Callable[[], int],
        checkpoint: Path | None = None,
    ):
        self._store, self._seed, self._copies = store, seed, copies
        self._ahead, self._steps_left = ahead, steps_left
        self._thread = ThreadPoolExecutor(1) if ahead else None
        self._coming: deque[Future[Batch]] = deque()
        self._given_out = 0
        self._read = store._iterate_filtered_multi_hook_activations()
        self._widths: dict[str, int] = {}  # by hook: columns of the buffer
        self._kept = torch.empty(0)  # `[rows, columns]`, mixed with what is read next
        self._ready = torch.empty(0)  # mixed, and given out next
        if checkpoint is not None and (checkpoint / MIXING_BUFFER).is_file():
            self._load(checkpoint / MIXING_BUFFER)
        self.reseed()

    def reseed(self) -> None:
        """Seed torch's generator by what was read so far."""
        assert not self._coming, "batches were read past a checkpoint"
        torch.manual_seed(self._seed + self._store.n_dataset_processed)

    def save(self, checkpoint: Path) -> None:
        """Write the buffer into the folder of a checkpoint."""
        parts = {"kept": self._kept, "ready": self._ready}
        state = {
            f"{part}/{hook}": columns.contiguous().cpu()
            for part, rows in parts.items()
            for hook, columns in self._by_hook(rows).items()
        }
        save_file(state, checkpoint / MIXING_BUFFER)

    def _load(self, file: Path) -> None:
        state = load_file(file, device=str(self._store.device))
        hooks = [name.removeprefix("kept/") for name in state if name.startswith("kept/")]
        hooks.sort(key=list(self._store._hook_names or ()).index)
        self._widths = {hook: state[f"kept/{hook}"].shape[1] for hook in hooks}
        if hooks:
            self._kept, self._ready = (
                torch.cat([state[f"{part}/{hook}"] for hook in hooks], dim=1)
                for part in ("kept", "ready")
            )

    def close(self) -> None:
        """End the thread, after the batch that it is at."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            return self._next()
        while len(self._coming) < 1 + min(self._ahead, self._steps_left() - 1):
            self._coming.append(self._thread.submit(self._next))
        return self._coming.popleft().result()

    @torch.no_grad()
    def _next(self) -> Batch:
        size = self._store.train_batch_size_tokens
        while len(self._ready) < size:
            self._fill(size)
        batch, self._ready = self._ready[:size], self._ready[size:]
        batches = self._by_hook(batch)
        self._given_out += 1
        return {key: batches[hook].to(device) for key, (hook, device) in self._copies.items()}

    def _fill(self, size: int) -> None:
        """Read on; once the buffer is full, shuffle it and set all but a share of it free.

        As SAELens's `mixing_buffer` (sae_lens 6.54, training/mixing_buffer.py).
        """
        read = next(self._read)
        for hook, part in read.items():  # here, as a look at each batch would wait for a GPU
            if not torch.isfinite(part).all():
                raise ActivationError(
                    f"activations at {hook} are NaN or infinite, read for training batch "
                    f"{self._given_out}; run the language model in float32 or bfloat16"
                )
        self._widths = {hook: read[hook].shape[1] for hook in self._store._hook_names or ()}
        rows = torch.cat([read[hook] for hook in self._widths], dim=1)
        self._kept = torch.cat([self._kept, rows]) if len(self._kept) else rows
        full = self._store.n_batches_in_buffer * self._store.training_context_size
        if len(self._kept) < full:
            return
        share = self._store.activations_mixing_fraction
        if share > 0:
            self._kept = self._kept[torch.randperm(len(self._kept))]
        free = max(1, (len(self._kept) - int(full * share)) // size) * size
        self._ready, self._kept = self._kept[:free], self._kept[free:]

    def _by_hook(self, rows: torch.Tensor) -> Batch:
        if not self._widths:
            return {}
        if rows.ndim == 1:  # nothing yet
            rows = rows.new_empty(0, sum(self._widths.values()))
        parts = rows.split(list(self._widths.values()), dim=1)
        return dict(zip(self._widths, parts, strict=True))
