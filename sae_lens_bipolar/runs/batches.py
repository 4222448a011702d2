"""The training batches of a run: restartable at a row, and read ahead where that is wanted."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_bipolar.errors import ActivationError

Batch = dict[str, torch.Tensor]


class RestartableBatches:
    """The activation store's batches, `{key: [batch, d_in]}`, restartable at a row.

    SAELens's mixing buffer and random state are in no checkpoint, so a resumed run would see other
    batches. Here the buffer is emptied and the generator seeded anew at every checkpoint, in an
    uninterrupted run too: the state of the stream is then the number of rows read, which
    SAELens saves. The price is one buffer of tokens per checkpoint.

    SAELens's own thread, `prefetch_llm_batches`, reads past checkpoints, and how far is chance.
    This one stops before each, so that batches are the same with it and without it.

    Args:
        copies: for each key the hook and the device of its activations.
        ahead: batches that a thread computes while SAEs train on the one before.
        steps_left: counts the batches, from the next one on, that come before a restart or the end.

    Raises:
        ActivationError: if a batch holds NaN or infinite values; names the hook and the batch.
    """

    def __init__(
        self,
        store: ActivationsStore,
        seed: int,
        copies: Mapping[str, tuple[str, torch.device]],
        ahead: int,
        steps_left: Callable[[], int],
    ):
        self._store, self._seed, self._copies = store, seed, copies
        self._ahead, self._steps_left = ahead, steps_left
        self._thread = ThreadPoolExecutor(1) if ahead else None
        self._coming: deque[Future[Batch]] = deque()
        self._served = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew at the next row."""
        assert not self._coming, "batches were read past the end of a stretch"
        torch.manual_seed(self._seed + self._store.n_dataset_processed)
        self._batches = self._store.get_multi_hook_data_loader()

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

    def _next(self) -> Batch:
        batches = next(self._batches)
        for hook_name, batch in batches.items():
            if not torch.isfinite(batch).all():
                raise ActivationError(
                    f"activations at {hook_name} are NaN or infinite in training batch "
                    f"{self._served}; run the language model in float32 or bfloat16"
                )
        self._served += 1
        return {key: batches[hook].to(device) for key, (hook, device) in self._copies.items()}
