"""Checks of this machine: device, memory, disk, open files, decoding processes."""

import os
import platform
import resource
import shutil
import tempfile
import warnings
from pathlib import Path

import torch

from maskfleet.jobs.cores import cores
from maskfleet.jobs.storage.schemes import is_local
from maskfleet.jobs.tools.doctor.contract import Finding, Subject, Verdict
from maskfleet.unet.precision import native

_GIB = 2**30
_MEMORY = 4 * _GIB
"""Available memory below which Ray, the network and the decoding processes compete."""

_DISK = _GIB
_FILES = 4096
_DRIVER = Path("/proc/driver/nvidia/version")


def device(subject: Subject) -> Finding:
    """Find the GPUs and whether PyTorch can use them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        precisions = ", ".join(native(torch.device("cuda")))
        names = " and ".join(sorted({torch.cuda.get_device_name(number) for number in range(count)}))
        versions = f"driver {_driver() or 'unknown'}, CUDA {torch.version.cuda}"
        return Finding("ok", f"{count} × {names}, {versions}, {precisions}")
    wanted = subject.job is not None and subject.job.inference.device == "cuda"
    if (driver := _driver()) is None:
        text = f"no GPU: CPU only, {cores()} cores, {', '.join(native(torch.device('cpu')))}"
        if wanted:
            return Finding("problem", text, "use a machine with a GPU, or set inference.device to 'auto'")
        return Finding("ok", text)
    verdict: Verdict = "problem" if wanted else "warning"
    text = f"an NVIDIA GPU (driver {driver}) that PyTorch {torch.__version__} cannot use: CPU only"
    if torch.version.cuda is None:
        return Finding(verdict, text, "install a CUDA build of PyTorch")
    if any("too old" in str(warning.message) for warning in caught):
        return Finding(verdict, text, f"the driver is too old for CUDA {torch.version.cuda}: update it")
    return Finding(verdict, text, "check nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, start it with --gpus all")


def _driver() -> str | None:
    """Return the version of NVIDIA's kernel driver, or None if there is none."""
    try:
        words = _DRIVER.read_text().split("Kernel Module", 1)[1].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit()), "unknown")


def memory(subject: Subject) -> Finding:
    """Find the memory available within the container's limit."""
    total, available = _memory()
    text = f"{_gib(available)} of {_gib(total)} available"
    if available < _MEMORY:
        return Finding("warning", text, f"free memory or raise the container's limit to {_gib(_MEMORY)} or more")
    return Finding("ok", text)


def _memory() -> tuple[int, int]:
    """Return total and available bytes, given the container's limit (cgroups, version 2 or 1)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines}
    total, available = kilobytes["MemTotal:"] * 1024, kilobytes["MemAvailable:"] * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (int(Path("/sys/fs/cgroup", name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no limit, or "max"
            continue
        total, available = min(total, most), min(available, max(0, most - now))
    return total, available


def disk(subject: Subject) -> Finding:
    """Find the free disk space of the temporary folder and of a local output."""
    places = {"temporary files": tempfile.gettempdir()}
    if subject.job is not None and is_local(subject.job.output):
        places["the output"] = _existing(subject.job.output.removeprefix("file://"))
    free = {what: shutil.disk_usage(place).free for what, place in places.items()}
    text = ", ".join(f"{_gib(free[what])} free for {what} ({place})" for what, place in places.items())
    if min(free.values()) < _DISK:
        return Finding("warning", text, f"free {_gib(_DISK)} or more, or set TMPDIR to another disk")
    return Finding("ok", text)


def _existing(place: str) -> str:
    while not os.path.isdir(place) and place not in ("", "/"):
        place = os.path.dirname(place)
    return place or "."


def open_files(subject: Subject) -> Finding:
    """Find the largest number of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES:
        return Finding("warning", f"at most {hard} open files", f"raise the limit to {_FILES} or more (ulimit -Hn)")
    return Finding("ok", f"at most {'any number of' if hard == resource.RLIM_INFINITY else hard} open files")


def system(subject: Subject) -> Finding:
    """Find the operating system."""
    text = f"{platform.system()} {platform.release()} on {platform.machine()}, {cores()} cores for this process"
    if platform.system() != "Linux":
        return Finding("warning", text, "use Linux: decoding processes have fewer limits elsewhere")
    return Finding("ok", text)


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
