"""Numbers of a GPU on the host, without waiting for what was queued behind them."""

from typing import Any

import torch


class EarlyCopy:
    """A copy that is started now and read later.

    `.item()` waits until the device has done all it was asked to, and then the device waits for
    the next work. A copy that was started when its numbers were made waits for these alone.

    Args:
        numbers: a tensor on any device; on a CPU it is copied at once.
    """

    def __init__(self, numbers: torch.Tensor):
        numbers = numbers.detach().reshape(-1)
        self._done: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(numbers.device))
        else:
            self._host = numbers.clone()

    def read(self) -> list[float]:
        """The numbers as they were when the copy was started."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.tolist()

    def __reduce__(self) -> tuple[Any, ...]:  # an event cannot be copied
        return EarlyCopy, (torch.tensor(self.read(), dtype=self._host.dtype),)
