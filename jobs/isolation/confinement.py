"""Confinement: a process gives up every right that decoding does not need. Called by the process itself."""

import ctypes
import os
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterator

from maskfleet.jobs.isolation import landlock, seccomp

MEANS = ("landlock", "seccomp")
"""Means of the kernel: Landlock takes files and what other processes own, seccomp takes system calls."""

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_INSTALLED = ("site-packages", "dist-packages")
_NO_NEW_PRIVILEGES = 38
_CAPABILITIES = 0x20080522
"""Version 3 of the kernel's structure of capabilities."""


def confine() -> list[str]:
    """Give up files but those of the interpreter, sockets, programs, other processes, and capabilities.

    Modules may still be imported. Threads started before are not held by Landlock, which then does not count.

    Returns:
        Those of `MEANS` that the kernel grants.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    if sys.platform != "linux":
        return []
    alone = len(os.listdir("/proc/self/task")) == 1
    readable = sorted(set(_readable()))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return []
    libc.capset(struct.pack("<Ii", _CAPABILITIES, 0), bytes(24))
    granted = {"landlock": landlock.restrict(readable) and alone, "seccomp": seccomp.restrict()}
    return [means for means in MEANS if granted[means]]


def _readable() -> Iterator[str]:
    """Yield what a lazy import may read: libraries, and the packages that are loaded, wherever they lie.

    Of the module search path, folders of installed packages alone count: it may name a person's home.
    """
    yield from _LIBRARIES
    yield from (os.path.join(sys.base_prefix, name) for name in ("lib", "lib64"))
    yield from (folder for folder in sys.path if os.path.basename(folder) in _INSTALLED)
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield sysconfig.get_path(name)
        yield sysconfig.get_path(name, vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    for name, module in list(sys.modules.items()):
        folders = getattr(module, "__path__", None)
        if folders is not None:
            yield from map(os.path.realpath, folders)
        elif "." not in name and (file := getattr(module, "__file__", None)):
            yield os.path.realpath(file)
