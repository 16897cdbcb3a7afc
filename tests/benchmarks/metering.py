"""Cost of the stage timers: `python tests/benchmarks/metering.py --pairs 5`.

Runs without Ray and without a network alternate between real timers and timers that do nothing. Printed are images per
second of the whole run, and CPU time per image of this process and its decoders.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.timing import stage_timers
from maskfleet.jobs.timing.bottleneck import Speed
from maskfleet.jobs.tools import bench
from maskfleet.jobs.tools.bench_images import draw
from maskfleet.unet import weights
from maskfleet.unet.model import UNet


def nothing(*_, **__):
    return nullcontext()


def measured(root: Path, number: int) -> tuple[float, float]:
    """Return images per second and milliseconds of CPU per image."""
    job = Job.of(
        {"input": str(root / "in"), "output": str(root / f"out-{number}"), "weights": str(root / "w.safetensors")}
    )
    before, began = _cpu(), time.perf_counter()
    report = run(job, InProcess(bench.identity_pipeline))
    seconds = time.perf_counter() - began
    return report.images / seconds, (_cpu() - before) / report.images * 1e3


def _cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        draw(root / "in", given.images, 256)
        (root / "w.safetensors").write_bytes(weights.save(UNet(3, 2, width=2)))  # unused, but a job needs weights
        measured(root, 0)
        found = {"with timers": [], "without": []}
        for pair in range(given.pairs):
            found["with timers"].append(measured(root, 2 * pair + 1))
            with (
                mock.patch.object(stage_timers.StageTimers, "add", nothing),
                mock.patch.object(stage_timers.StageTimers, "timed", nothing),
                mock.patch.object(stage_timers.Wait, "for_input", nothing),
                mock.patch.object(stage_timers.Wait, "for_output", nothing),
                mock.patch.object(stage_timers.Resource, "work", nothing),
                mock.patch.object(Speed, "forward_share", None),
                mock.patch.object(Speed, "limit", ""),
            ):
                found["without"].append(measured(root, 2 * pair + 2))
    print("| | images/s | CPU ms per image |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {median(v[0] for v in values):.0f} | {median(v[1] for v in values):.4f} |")
    ratios = [one[1] / other[1] for one, other in zip(found["with timers"], found["without"], strict=True)]
    print(f"CPU with timers / without: {median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


if __name__ == "__main__":
    sys.exit(main())
