"""Faults of disks: F18, full disks; F25, power cuts."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from faults.calls import cut_power
from faults.crashes import Sweep, swept
from faults.figures.figure import Figure, figure
from faults.nights import Kind, Nights

ROOT = Path(__file__).resolve().parents[3]


def can_mount() -> bool:
    """Return whether this process may mount a small file system."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextmanager
def _small_disk(size: int):
    folder = tempfile.mkdtemp(prefix="maskfleet-disk-")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield Path(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)


def full_disks(sizes=range(24, 240, 12)) -> Figure:
    """F18: the output's disk is full after so many KiB; it gets room, and the same command goes on."""
    with figure("F18", "output's disk full") as result, tempfile.TemporaryDirectory() as folder:
        nights = Nights(Path(folder), Kind(images=10))
        nights.images_of(0)
        _, expected = nights.again("reference", fresh=True)
        for size in sizes:
            with _small_disk(size * 1024) as disk:
                (nights.root / "out").symlink_to(disk)
                ended = nights.run("out")
                if ended.ok:
                    (nights.root / "out").unlink()
                    continue
                result.times += 1
                if "No space left" not in ended.error or not ended.error.startswith(("StorageError", "JobError")):
                    result.problems.append(f"{size} KiB: the run ended with {ended.error}")
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                ended, verdict = nights.again("out")
                found = verdict.faults(expected) if verdict else [f"the next command ended with {ended.error}"]
                result.judge([f"{size} KiB: {problem}" for problem in found])
                (nights.root / "out").unlink()
    return result


def power_cuts(every: int = 1, formats=("png", "tar")) -> Figure:
    """F25: the power fails before and after every system call; what was not synced is lost."""
    with figure("F25", "power cut: what is not synced is lost") as result:
        for format_ in formats:
            tally = swept(Sweep(Kind(format_), cut_power, within=True, every=every))
            result.times += tally.points
            result.judge([f"{format_}: {problem}" for problem in tally.problems])
    return result


def synced(shards: int = 12) -> Figure:
    """F25: of a real run, strace counts that each record is synced before it gets its name, and its folder after."""
    with figure("F25", "fsync counted by strace") as result, tempfile.TemporaryDirectory() as folder:
        nights = Nights(Path(folder), Kind("tar", images=2 * shards))
        nights.images_of(0)
        trace = Path(folder) / "trace"
        calls = "trace=openat,fsync,link,linkat,rename,renameat"
        command = [
            "strace",
            "-f",
            "-y",
            "-o",
            str(trace),
            "-e",
            calls,
            sys.executable,
            "-m",
            "maskfleet",
            "run",
            "--no-ray",
        ]
        more = ["--input", f"{folder}/in", "--output", f"{folder}/out", "--weights", f"{folder}/w.safetensors"]
        sets = [part for value in nights.job("out").run.model_dump(include={"shard_size"}).items() for part in
                ("--set", f"run.{value[0]}={value[1]}")]  # fmt: skip
        ended = subprocess.run(
            [*command, *more, *sets, "--set", "masks.format=tar", "--set", "run.max_error_rate=1"],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300,
        )  # fmt: skip
        if ended.returncode:
            result.problems.append(f"the run ended with {ended.returncode}: {ended.stderr[-300:]}")
        result.times, unsynced, folders = _read_trace(trace)
        result.notes.append(f"{result.times} records named, {unsynced} not synced before, {folders} folders not after")
        result.problems += [f"{unsynced} records not synced"] * bool(unsynced) + [f"{folders} folders"] * bool(folders)
    return result


_HERE = r"(?:AT_FDCWD(?:<[^>]*>)?, )?"
_NAMED = re.compile(rf'(?:link|rename)\w*\({_HERE}"([^"]*maskfleet-tmp[^"]*)", {_HERE}"([^"]*)"')


def _read_trace(trace: Path) -> tuple[int, int, int]:
    """Return the number of records that got a name, of those not synced before, and of folders not synced after."""
    done, named, unsynced, pending = set(), 0, 0, set()
    for line in trace.read_text(errors="replace").splitlines():
        if found := re.search(r"fsync\(\d+<([^>]*)>", line):
            done.add(found[1])
            pending.discard(found[1])
        elif (found := _NAMED.search(line)) and line.endswith("= 0"):
            named += 1
            unsynced += found[1] not in done
            pending.add(os.path.dirname(found[2]))
    return named, unsynced, len(pending)


def has_strace() -> bool:
    """Return whether strace is installed."""
    return shutil.which("strace") is not None
