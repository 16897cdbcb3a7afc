"""Every throughput ratio of the README's tables with one command: `python tests/benchmarks/compare.py`.

All measurements of a round alternate: the reference, maskfleet, then each rival. The time of maskfleet runs from the
start of its first shard to the end of its last; the time of a rival runs from its first written batch to its last,
which favours the rival. All read loose files and write loose PNG masks and Parquet.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from maskfleet.cluster.driver import Fleet
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import load_weights, segmenter_of, threads_of
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.tools import bench
from maskfleet.jobs.tools.bench_images import bench_job
from maskfleet.jobs.tools.machine_speed import codecs
from maskfleet.unet import weights
from maskfleet.unet.inference import roofline
from maskfleet.unet.model import UNet

HERE = Path(__file__).resolve().parent


def job_of(root: Path, name: str, width: int) -> Job:
    """Return a job with a random network of the given width; `bench_job` adds the input."""
    path = root / f"{name}.safetensors"
    path.write_bytes(weights.save(UNet(3, 2, width=width)))
    return Job.of({"input": "-", "output": "bench", "weights": str(path)}).model_copy(update={"input": ""})


def rival(job: Job, *arguments: str) -> dict:
    """Run a rival in a process of its own and return its printed result."""
    output = tempfile.mkdtemp(dir=Path(job.input).parent)
    command = [sys.executable, str(HERE / "rivals.py"), arguments[0], job.input, output, *arguments[1:]]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def forward_rate(job: Job, precision: str, seconds: float, side: int) -> float:
    loaded = load_weights(job)
    segmenter = segmenter_of(job, loaded, threads=threads_of(job), precision=precision)
    batch = segmenter.batch_size(side, side)
    return roofline.images_per_second(segmenter, batch, side, side, least_seconds=seconds)


def network(root: Path, name: str, width: int, images: int, options: argparse.Namespace, *, rivals: bool) -> None:
    """Compare a run with the bare forward pass and with both rivals."""
    ratios = {"bare forward": bench.Ratio()}
    ratios |= {"Ray Data": bench.Ratio(), "one-image loop, fp32": bench.Ratio()} if rivals else {}
    executor = InProcess if options.no_ray else Fleet
    with bench_job(job_of(root, name, width), images, options.side) as job:
        for _ in range(options.pairs):
            summary = run(bench.with_new_output(job), executor())
            ours = bench.steady_rate(summary)
            precision = (summary.tuning or {}).get("precision", "fp32")
            ratios["bare forward"].add(ours, forward_rate(job, precision, options.seconds, options.side))
            if rivals:
                bf16 = ["--bf16"] if precision == "bf16" else []
                theirs = rival(job, "raydata", "--weights", job.weights[0], *bf16)
                ratios["Ray Data"].add(ours, theirs["steady"])
                ratios["one-image loop, fp32"].add(ours, rival(job, "loop", "--weights", job.weights[0])["steady"])
    report(f"{name} (width {width}), {precision}, {images} JPEGs of {options.side}²", ratios)


def identity(root: Path, images: int, options: argparse.Namespace) -> None:
    """Compare runs without a network with the codecs alone and with two Ray Data pipelines.

    The codecs write no files, so they are also compared with a run whose masks go to tar files.
    """
    names = ("codecs alone", "codecs alone, masks to tar", "Ray Data", "Ray Data, masks by the actor")
    ratios = {name: bench.Ratio() for name in names}
    executor = InProcess if options.no_ray else Fleet
    marks: list[tuple[int, float]] = []  # committed shards, and CPU seconds of this process so far
    with bench_job(job_of(root, "identity", 4), images, options.side) as job:
        files = [Path(record.url).read_bytes() for record in islice(Source(job.input, output=job.output), 4000)]
        for _ in range(options.pairs):
            alone = codecs(files)["both_per_second"]
            marks.clear()
            done = run(
                bench.with_new_output(job),
                executor(open_pipeline=bench.identity_pipeline),
                on_progress=lambda _, progress: marks.append((progress.shards, time.process_time())),
            )
            ours = bench.steady_rate(done)
            ratios["codecs alone"].add(ours, alone)
            masks = job.masks.model_copy(update={"format": "tar"})
            tars = run(
                bench.with_new_output(job.model_copy(update={"masks": masks})),
                executor(open_pipeline=bench.identity_pipeline),
            )
            ratios["codecs alone, masks to tar"].add(bench.steady_rate(tars), alone)
            ratios["Ray Data"].add(ours, rival(job, "raydata", "--threads", "1")["steady"])
            theirs = rival(job, "raydata", "--threads", "1", "--fused")["steady"]
            ratios["Ray Data, masks by the actor"].add(ours, theirs)
    report(f"identity network, {images} JPEGs of {options.side}²", ratios)
    if not options.no_ray:
        (first, then), (last, now) = next(mark for mark in marks if mark[0]), marks[-1]
        print(f"\nDriver: {(now - then) / (last - first) * 1e3:.1f} ms of CPU per shard, {last - first} shards.")


def report(title: str, ratios: dict[str, bench.Ratio]) -> None:
    print(f"\n| {title}: against | theirs, images/s | maskfleet | ratio (least to most) |\n|---|---|---|---|")
    for name, ratio in ratios.items():
        found = ratio.summary
        print(
            f"| {name} | {found['reference_per_second']:.2f} | {found['images_per_second']:.2f} "
            f"| {found['ratio']:.2f} ({found['ratio_least']:.2f}–{found['ratio_most']:.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--full-images", type=int, default=160)
    parser.add_argument("--narrow-images", type=int, default=2000)
    parser.add_argument("--identity-images", type=int, default=12000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument(
        "--seconds", type=float, default=6, help="least duration of each measurement of the bare forward pass"
    )
    parser.add_argument("--only", choices=["full", "narrow", "identity"])
    parser.add_argument("--no-ray", action="store_true", help="run maskfleet in this process")
    options = parser.parse_args()
    torch_threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    print(
        f"{platform.processor() or platform.machine()}, {torch_threads} threads, {capability}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        if options.only in (None, "full"):
            network(Path(scratch), "full width", 64, options.full_images, options, rivals=True)
        if options.only in (None, "narrow"):
            network(Path(scratch), "narrow", 8, options.narrow_images, options, rivals=False)
        if options.only in (None, "identity"):
            identity(Path(scratch), options.identity_images, options)


if __name__ == "__main__":
    main()
