"""Memory of the process: recognising a shortage, and keeping freed blocks for reuse."""

import ctypes
import platform

import torch


def ran_out(error: BaseException) -> bool:
    """Whether an error is due to a lack of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Torch's CPU allocator and oneDNN raise plain RuntimeErrors.
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def keep_freed_memory() -> None:
    """Have glibc keep freed large blocks instead of returning them to the kernel.

    Torch's CPU allocator has no cache: by default every activation is mapped, faulted in page by page and unmapped
    again. That took 40 % of a small network's forward pass in a measurement. Only the main arena can keep blocks, so
    all threads use it (20 % of a large network's forward pass). Threads that have already allocated keep their own
    arena; a process started with MALLOC_ARENA_MAX=1 has no such threads.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(arena_max, 1)
