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
def test_a_lack_of_memory_is_recognised(error):
    assert ran_out(error)


def test_the_message_of_the_cpu_allocator_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(raised.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not ran_out(RuntimeError("CUDA error: device-side assert triggered"))
