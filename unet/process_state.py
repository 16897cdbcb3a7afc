"""Global settings of torch: the number of CPU threads, for each thread, and TF32 on a GPU, for the process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Compute with this number of CPU threads in the calling thread, then restore the previous number."""
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number != before:
            torch.set_num_threads(before)


class IeeeFp32:
    """Full fp32 convolutions on a GPU, by default rounded to TF32's 10 bits of mantissa.

    The setting is shared by all threads. It is restored once the last of them has left.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._allowed = True

    @contextmanager
    def on(self) -> Iterator[None]:
        """Forbid TF32 within this context."""
        with self._lock:
            if not self._inside:
                self._allowed = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    torch.backends.cudnn.allow_tf32 = self._allowed


IEEE_FP32 = IeeeFp32()
"""The one of this process."""
