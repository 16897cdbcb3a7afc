"""A decoder that tries what a decoder must not do. The bytes of an image name the attempt and its target."""

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess

import numpy as np

_CALLS = {"x86_64": 0, "aarch64": 1}[os.uname().machine] if os.uname().machine in ("x86_64", "aarch64") else 0
_LIBC = ctypes.CDLL(None, use_errno=True)


class Result(Exception):
    """How an attempt ended: its class is `did_it` or `refused`."""

    def __init__(self, error_class, message):
        super().__init__(message)
        self.error_class = error_class


def decode(data, **limits):
    if data == b"fine":
        return np.zeros((8, 8, 3), np.uint8), (8, 8)
    name, target = json.loads(data)
    try:
        answer = ATTEMPTS[name](target)
    except (OSError, ValueError) as error:  # setrlimit and prlimit raise ValueError
        raise Result("refused", repr(error)) from error
    raise Result("did_it", repr(answer))


def call(numbers, *arguments):
    """Make a system call that no library makes."""
    result = _LIBC.syscall(numbers[_CALLS], *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path):
    with open(path, "rb") as file:
        return len(file.read(100))


def write(path):
    with open(path, "w") as file:
        file.write("x")


def peek(pid):
    buffer = ctypes.create_string_buffer(8)
    here = struct.pack("@PN", ctypes.addressof(buffer), 8)
    there = struct.pack("@PN", id(None), 8)
    return call((310, 270), pid, here, 1, there, 1, 0)


def connect(address):
    with socket.socket() as client:
        client.connect(tuple(address))


def queue(path):
    return call((425, 425), 4, bytes(120))  # io_uring reaches what a filter of system calls does not see


def fork(_):
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)


def clone3(_):
    arguments = ctypes.create_string_buffer(struct.pack("<8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0))
    child = call((435, 435), arguments, ctypes.c_size_t(64))
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)


def handle(path):
    buffer = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    return call((303, 264), -100, os.fsencode(path), buffer, ctypes.byref(mount), 0)


def owner(pid):
    import fcntl

    for descriptor in range(3, 64):  # its socket among them
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETOWN, pid)
        except OSError as error:
            if error.errno != 9:
                raise


ATTEMPTS = {
    "read": read,
    "list": os.listdir,
    "write": write,
    "append": lambda path: os.open(path, os.O_APPEND | os.O_WRONLY),
    "truncate": lambda path: os.truncate(path, 0),
    "make a folder": os.mkdir,
    "make a link": lambda path: os.symlink("/", path),
    "rename": lambda path: os.rename(path, path + "2"),
    "remove": os.remove,
    "change rights": lambda path: os.chmod(path, 0o777),
    "change times": os.utime,
    "open by handle": handle,
    "open a socket": lambda _: socket.socket().fileno(),
    "open a local socket": lambda _: socket.socket(socket.AF_UNIX).fileno(),
    "connect": connect,
    "queue": queue,
    "exec": lambda path: os.execv(path, [path]),
    "run": lambda path: subprocess.run([path], check=False).returncode,
    "spawn": lambda path: os.posix_spawn(path, [path], {}),
    "fork": fork,
    "clone3": clone3,
    "signal": lambda pid: os.kill(pid, signal.SIGCONT),
    "signal all": lambda _: os.kill(-1, 0),
    "signal a thread": lambda pid: call((234, 131), pid, pid, signal.SIGCONT),
    "signal through a file": owner,
    "peek": peek,
    "trace": lambda pid: call((101, 117), 0x4206, pid, 0, 0),
    "open a process": os.pidfd_open,
    "limit": lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (10**9, resource.RLIM_INFINITY)),
    "import": lambda name: importlib.import_module(name).__name__,
}
