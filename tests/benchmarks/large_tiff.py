"""A 10,000² TIFF of 16 bits read in rows: seconds and memory, by this checkout and by another one.

`python tests/benchmarks/large_tiff.py --other PLACE`, where PLACE is a checkout from before tifffile read TIFF
(`git worktree add PLACE 24b1e19^`), which read it by libvips. Files are drawn in tiles of 256² px, plain and by deflate.
Each reading runs in a process of its own, and asks for rows as tiles with a halo do. Time is CPU time of the process and
of its reader, so that others on the machine count little. Readings alternate; medians are printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"plain": None, "deflate": "zlib"}
CORE, HALO = 1344, 96


def draw(path: Path, side: int, compression: str | None) -> None:
    """Draw smooth noise of 12 bits in 16."""
    import numpy as np
    import tifffile

    coarse = np.random.default_rng(0).integers(0, 4096, (side // 16 + 1, side // 16 + 1)).astype(np.uint16)
    pixels = np.kron(coarse, np.ones((16, 16), np.uint16))[:side, :side]
    pixels += np.random.default_rng(1).integers(0, 16, (side, side)).astype(np.uint16)
    tifffile.imwrite(path, pixels, tile=(256, 256), compression=compression, photometric="minisblack", metadata=None)


def read(path: str, package: str) -> dict[str, float]:
    """Read a file to its end by the package in a folder, and return what it took."""
    sys.path.insert(0, package)
    from maskfleet.jobs.images.contract import Limits
    from maskfleet.jobs.images.streams import Stream

    began, cpu = time.perf_counter(), time.process_time()
    total = 0.0
    with open(path, "rb") as file, Stream(file.fileno(), Limits(1, max_pixels=10**9)) as stream:
        for top in range(0, stream.height, CORE):
            rows = stream.read(max(0, top - HALO), min(stream.height, top + CORE + HALO))
            total += float(rows[0, ::64, ::64].mean())
        lines = Path(f"/proc/{stream._process.pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - cpu + children.ru_utime + children.ru_stime
    return {"cpu": spent, "wall": time.perf_counter() - began, "peak": peak / 1024, "mean": total}


def main() -> None:
    """Draw, read in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", help="checkout to compare with")
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(*options.read)))
        return
    packages = {"this": str(ROOT)} | ({"other": options.other} if options.other else {})
    with tempfile.TemporaryDirectory() as folder:
        for kind, compression in KINDS.items():
            path = Path(folder, f"{kind}.tif")
            draw(path, options.side, compression)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in packages}
            for _ in range(options.rounds):
                for name, package in packages.items():
                    command = [sys.executable, __file__, "--read", str(path), package]
                    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
                    found[name].append(json.loads(answer.stdout.splitlines()[-1]))
            for name, readings in found.items():
                middle = {key: statistics.median(reading[key] for reading in readings) for key in readings[0]}
                print(
                    f"{kind} ({path.stat().st_size / 2**20:.0f} MiB), {name}: {middle['cpu']:.2f} s of CPU, "
                    f"{middle['wall']:.2f} s, {middle['peak']:.0f} MiB in the reader"
                )
            os.remove(path)


if __name__ == "__main__":
    main()
