"""seccomp: a filter of system calls without which no image is decoded worse. Linux on x86-64 and 64-bit ARM."""

import ctypes
import errno
import os
import platform
import struct
import sys

from maskfleet.jobs.isolation.system_calls import DENIED, NEWEST, NUMBERS

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The kernel's names of the two kinds of processor. Calls of another kind, such as 32-bit ones, are all refused."""

_SET_FILTER = 1
_FLAGS = 0b101
"""All threads; and no switch of the processor's speculation, which costs speed before Linux 5.16."""

_ALLOW = 0x7FFF0000
_ERROR = 0x00050000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000
_OWNERS = (8, 10, 15)
"""Commands of fcntl that let a file send signals to other processes."""

_INPUT_AND_OWNERS = (0x5412, 0x8901, 0x8902)
"""Commands of ioctl that type into a terminal, or let a socket send signals."""


def restrict() -> bool:
    """Refuse system calls that reach beyond this process, in all its threads; return whether the kernel did it.

    The process must not be able to gain privileges any more.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _AUDIT:
        return False
    code = b"".join(struct.pack("<HBBI", *line) for line in program(machine, os.getpid()))
    lines = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("@HP", len(code) // 8, ctypes.addressof(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(NUMBERS["seccomp"][machine == "aarch64"], _SET_FILTER, _FLAGS, filter_) == 0)


_Line = tuple[int, int, int, int]
"""A line of the filter: operation, lines to skip if true, lines to skip if false, operand."""


def program(machine: str, pid: int) -> list[_Line]:
    """Return the filter of a process.

    Args:
        machine: `x86_64` or `aarch64`.
        pid: Id of the process, the only one it may signal and limit.
    """
    column = machine == "aarch64"
    no, unknown, allow = ((_RETURN, 0, 0, result) for result in (_ERROR | errno.EPERM, _ERROR | errno.ENOSYS, _ALLOW))
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, _AUDIT[machine]), no,
        (_LOAD, 0, 0, _NUMBER), (_IF_AT_LEAST, 0, 1, NEWEST + 1), unknown,
    ]  # fmt: skip

    def of(name: str, *body: _Line) -> None:
        number = NUMBERS[name][column]
        if number is not None:
            lines.extend([(_IF_EQUAL, 0, len(body), number), *body])

    for name in DENIED:
        of(name, no)
    of("clone3", unknown)  # its flags lie out of reach; libraries then call clone
    of("clone", _argument(0), (_IF_ANY_BIT, 1, 0, _CLONE_THREAD), no, allow)
    of("open", _argument(1), (_IF_ANY_BIT, 0, 1, _WRITES), no, allow)
    of("openat", _argument(2), (_IF_ANY_BIT, 0, 1, _WRITES), no, allow)
    for name in ("kill", "tgkill"):
        of(name, _argument(0), (_IF_EQUAL, 1, 0, pid), no, allow)
    of("prlimit64", _argument(0), (_IF_EQUAL, 2, 0, 0), (_IF_EQUAL, 1, 0, pid), no, allow)
    for name, commands in (("fcntl", _OWNERS), ("ioctl", _INPUT_AND_OWNERS)):
        of(name, _argument(1), *_none_of(commands), no, allow)
    return [*lines, allow]


def _argument(index: int) -> _Line:
    """Load the lower half of an argument of the call."""
    return _LOAD, 0, 0, 16 + 8 * index


def _none_of(values: tuple[int, ...]) -> list[_Line]:
    """Go to the next line if the loaded value is one of these, else to the one after it."""
    checks: list[_Line] = [(_IF_EQUAL, len(values) - 1 - place, 0, value) for place, value in enumerate(values)]
    *first, last = checks
    return [*first, (last[0], 0, 1, last[3])]
