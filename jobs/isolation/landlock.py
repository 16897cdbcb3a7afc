"""Landlock: the kernel takes files, TCP and signals from a process. Linux 5.13 and later; no library has it yet."""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
"""Flag that asks for the version of the kernel's interface."""

_PATH_BENEATH = 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Every right on files, by the first version of the interface that knows them."""

_TCP = 0b11
"""Binding and connecting; since version 4."""

_SCOPES = 0b11
"""Abstract Unix sockets and signals to processes outside; since version 6."""


def restrict(readable: Iterable[str]) -> bool:
    """Take files, TCP and signals from this thread, and from the threads that it will start.

    Args:
        readable: Files and folders that stay readable. Those that do not exist are passed over.

    Returns:
        Whether the kernel did it.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    files = _FILES[max(known for known in _FILES if known <= version)]
    attributes = struct.pack("<QQQ", files, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        # Without one of the rules the process could not import what it needs.
        allowed = all(_allow(libc, ruleset, path) for path in readable)
        return allowed and bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str) -> bool:
    """Add the rule of a path, if it exists; return whether the kernel took it."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        rights = _READ_FILE | _READ_FOLDER if os.path.isdir(path) else _READ_FILE
        return bool(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, descriptor), 0) == 0)
    finally:
        os.close(descriptor)
