"""The filter of system calls, interpreted here for both kinds of processor."""

import errno
import os
import struct

import pytest

from maskfleet.jobs.isolation.seccomp import program
from maskfleet.jobs.isolation.system_calls import DENIED, NEWEST, NUMBERS

ALLOWED, REFUSED, UNKNOWN = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4711


def judged(machine, number, *arguments, architecture=None):
    """Run the filter on a call, as the kernel does."""
    call = struct.pack(
        "<IIQ6Q", number, architecture or ARCHITECTURES[machine], 0, *arguments, *[0] * (6 - len(arguments))
    )
    lines, at, value = program(machine, PID), 0, 0
    while True:
        operation, if_true, if_false, operand = lines[at]
        at += 1
        match operation:
            case 0x20:
                (value,) = struct.unpack_from("<I", call, operand)
            case 0x15:
                at += if_true if value == operand else if_false
            case 0x35:
                at += if_true if value >= operand else if_false
            case 0x45:
                at += if_true if value & operand else if_false
            case 0x06:
                return operand


@pytest.fixture(params=ARCHITECTURES)
def call(request):
    """Judges a call by name on one kind of processor."""
    column = list(ARCHITECTURES).index(request.param)

    def judge(name, *arguments, **more):
        number = NUMBERS[name][column] if isinstance(name, str) else name
        return None if number is None else judged(request.param, number, *arguments, **more)

    return judge


def test_denied_calls_are_refused_whatever_their_arguments(call):
    for name in DENIED:
        assert call(name) in (REFUSED, None), name
        assert call(name, *[2**64 - 1] * 6) in (REFUSED, None), name


def test_what_a_decoder_needs_is_allowed(call):
    for number in range(NEWEST + 1):
        named = any(number in pair for pair in NUMBERS.values())
        assert named or call(number) == ALLOWED


def test_newer_calls_are_answered_as_if_the_kernel_had_none(call):
    for number in (NEWEST + 1, 1000, 0x40000000 + 1, 2**32 - 1):  # x32's calls among them
        assert call(number) == UNKNOWN


def test_calls_of_another_kind_of_processor_are_refused(call):
    assert call("openat", architecture=0x40000003) == REFUSED  # 32-bit x86
    assert call(0, architecture=0x40000028) == REFUSED  # 32-bit ARM


def test_files_are_opened_for_reading_alone(call):
    for name, place in (("open", 1), ("openat", 2)):
        before = [0] * place
        for flags in (os.O_RDONLY, os.O_CLOEXEC, os.O_DIRECTORY, os.O_NOFOLLOW):
            assert call(name, *before, flags) in (ALLOWED, None)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_RDWR | os.O_CLOEXEC):
            assert call(name, *before, flags) in (REFUSED, None)


def test_a_process_may_signal_and_limit_itself_alone(call):
    for name in ("kill", "tgkill", "prlimit64"):
        assert call(name, PID, 1, 11) == ALLOWED
        for other in (1, PID + 1, 2**64 - 1, 2**32 - PID):
            assert call(name, other, 1, 11) == REFUSED
    assert call("prlimit64", 0) == ALLOWED
    assert call("kill", 0) == REFUSED


def test_threads_are_started_and_processes_are_not(call):
    assert call("clone", 0x3D0F00) == ALLOWED  # of pthread_create
    assert call("clone", 17) == REFUSED  # of fork
    assert call("clone3") == UNKNOWN


def test_files_send_no_signals_and_nothing_is_typed(call):
    for command in (8, 10, 15):
        assert call("fcntl", 3, command) == REFUSED
    for command in (0x5412, 0x8901, 0x8902):
        assert call("ioctl", 3, command) == REFUSED
    for name in ("fcntl", "ioctl"):
        assert call(name, 3, 1) == ALLOWED
