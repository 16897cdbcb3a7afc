"""Memory: keeping what is needed again, and telling that there is too little."""

import ctypes
import platform

import torch


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Torch's CPU allocator and oneDNN have no class of their own for it.
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def keep_freed_memory() -> None:
    """Have glibc keep large blocks when they are freed instead of giving them back to the kernel.

    Torch's CPU allocator has no cache: without this every activation is mapped, faulted in page by
    page and unmapped again, which was seen to take 40 % of a small network's forward pass. Blocks can
    be kept in the main arena alone, so every thread is to use that one (20 % of a large network's).
    Threads that have allocated before keep the arena that they have; a process that starts with
    MALLOC_ARENA_MAX=1 has none of those.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(arena_max, 1)
