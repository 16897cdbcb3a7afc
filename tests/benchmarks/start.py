"""From the command to the first mask: `python tests/benchmarks/start.py`.

Starts `maskfleet run` as a user's shell does, on 32 drawn JPEGs of 256×256 px with a local Ray. A first, uncounted
round fills the file cache. The clock is the file system's: from before the process starts to the first mask file, so
the interpreter and its imports count. The steps in between are those reported by the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from maskfleet.jobs.tools.bench_images import draw

_STEPS = ("plan", "ray", "worker", "shard")


def started(images: Path, output: Path, weights: str, *more: str) -> dict[str, float]:
    """Return seconds by step. "shell" is the total to the first mask; "before" precedes the run's own clock."""
    command = [
        sys.executable,
        "-m",
        "maskfleet",
        "run",
        "--input",
        str(images),
        "--output",
        str(output),
    ]
    began = time.time()
    done = subprocess.run([*command, "--weights", weights, "--json", *more], check=True, stdout=subprocess.PIPE)
    took = time.time() - began
    shell = min(path.stat().st_mtime for path in (output / "masks").rglob("*.png")) - began
    steps = json.loads(done.stdout)["start_seconds"]
    return {"before": shell - sum(steps.values()), **steps, "shell": shell, "whole": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", default="nuclei")
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    more = ["--no-ray"] if options.no_ray else []
    with tempfile.TemporaryDirectory() as scratch:
        images = draw(Path(scratch, "in"), 32, 256)
        rounds = [
            started(images, Path(scratch, f"out-{number}"), options.weights, *more)
            for number in range(options.rounds + 1)
        ]
    print("| step | s, median | least | most |\n|---|---|---|---|")
    for name in rounds[0]:
        values = [found[name] for found in rounds[1:]]
        print(f"| {name} | {median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")


if __name__ == "__main__":
    sys.exit(main())
