"""Shared memory: pixels lie there and are never sent."""

import fcntl
import mmap
import os
import tempfile
from typing import NamedTuple


class Block(NamedTuple):
    """Anonymous memory shared by its file descriptor. Nothing is left behind when all processes are killed."""

    descriptor: int
    map: mmap.mmap

    def close(self) -> None:
        """Close the descriptor. Views of the memory keep the memory alive."""
        os.close(self.descriptor)


def shared_block(size: int) -> Block:
    """Create a block of `size` bytes. Untouched pages take no memory."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("maskfleet-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        # A process that shrank the block would kill every other process at its next look at the lost pages.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
    return Block(descriptor, mmap.mmap(descriptor, size))
