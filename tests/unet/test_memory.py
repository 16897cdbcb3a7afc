import pytest
import torch

from maskfleet.unet.memory import ran_out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("could not create a primitive: not enough memory"),
    ],
)
def test_too_little_memory_is_told_from_other_errors(error):
    assert ran_out(error)


def test_the_cpu_allocator_says_what_is_looked_for():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(raised.value)


def test_other_errors_are_none():
    assert not ran_out(RuntimeError("CUDA error: device-side assert triggered"))
