"""End to end against the bare forward pass, as a ratio in one run: `python tests/benchmarks/end_to_end.py`.

For the full-width network and for an identity network, over drawn 256² JPEGs as loose files on local
disk, several pairs of both measurements and their medians. The steady state is from the first
shard's commit to the last one's. What the identity network is paired with is Pillow's decoding and
encoding alone, in memory, one process per core.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import jobs.run
from cluster import driver
from jobs.job import Job
from jobs.masks import Encoder, default_values
from jobs.run import pipeline_of
from unet import weights
from unet.identity import Identity
from unet.model import UNet
from unet.segmenter import Segmenter

SIDE = 256


def with_identity(this, cpus):
    torch.set_num_threads(1)
    segmenter = Segmenter(Identity(), precision="fp32")
    return pipeline_of(this, segmenter, cpus, encoder=Encoder(default_values(2)))


def draw(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = random.integers(0, 256, (24, 24, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
        noisy = (pixels + random.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05}.jpg", quality=90)
    return folder


def bare(segmenter: Segmenter, *, seconds: float) -> float:
    """Images per second of the network alone, folded and in its layout, on resident input."""
    batch = segmenter.batch_size(SIDE, SIDE)
    x = torch.rand(batch, 3, SIDE, SIDE).to(segmenter._dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        segmenter._model(x)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            segmenter._model(x)
            done += batch
        return done / (time.perf_counter() - started)


def codecs(paths: list[Path]) -> float:
    """Images per second of decoding and encoding alone: Pillow, from memory to memory, a process per core."""
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(_codecs, [paths[:8]] * cores, chunksize=1)  # imports, and the files into the cache
        return len(paths) / max(pool.map(_codecs, [paths[core::cores] for core in range(cores)], chunksize=1))


def _codecs(paths: list[Path]) -> float:
    files = [path.read_bytes() for path in paths]
    started = time.perf_counter()
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
        mask = np.where(pixels[..., 1] > pixels[..., 0], np.uint8(255), np.uint8(0))
        Image.fromarray(mask).save(io.BytesIO(), "PNG")
    return time.perf_counter() - started


def steady(job: Job, run, **more) -> tuple[float, float]:
    """Images per second from the first commit to the last, and over the whole command."""
    seen = []
    started = time.perf_counter()
    run(job, progress=lambda _, tally: seen.append((time.perf_counter(), tally.done)), **more)
    whole = seen[-1][1] / (time.perf_counter() - started)
    first = next(item for item in seen if item[1])
    return (seen[-1][1] - first[1]) / (seen[-1][0] - first[0]), whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--full-width-images", type=int, default=64)
    parser.add_argument("--identity-images", type=int, default=4000)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        images = draw(root / "in", max(options.identity_images, options.full_width_images))
        (root / "w.safetensors").write_bytes(weights.save(UNet(3, 2)))
        runs = {"no-ray": jobs.run.run, "local Ray, one worker": driver.run}

        def job_of(name: str, count: int, shard: int) -> Job:
            listed = root / f"{name}.txt"
            listed.write_text("\n".join(str(path) for path in sorted(images.iterdir())[:count]))
            table = {"input": str(listed), "output": str(root / name), "weights": str(root / "w.safetensors")}
            return Job.of(table, [f"run.shard_size={shard}", f"inference.precision={options.precision}"])

        print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
        segmenter = Segmenter(UNet(3, 2), precision=options.precision)
        print(f"full width, {segmenter.precision}, {options.full_width_images} JPEGs of {SIDE}²")
        for name, run in runs.items():
            pairs = []
            for number in range(options.pairs):
                forward = bare(segmenter, seconds=6)
                rate, _ = steady(job_of(f"full-{name[:3]}-{number}", options.full_width_images, 8), run)
                pairs.append((forward, rate, rate / forward))
            report(name, pairs)
        print(f"identity, {options.identity_images} JPEGs of {SIDE}²: codecs alone, steady, steady ÷ codecs")
        for name, run in runs.items():
            pairs, wholes = [], []
            for number in range(options.pairs):
                alone = codecs(sorted(images.iterdir())[: options.identity_images])
                job = job_of(f"null-{name[:3]}-{number}", options.identity_images, 256)
                rate, whole = steady(job, run, open_pipeline=with_identity)
                pairs.append((alone, rate, rate / alone))
                wholes.append(whole)
            report(name, pairs)
            print(f"  {'':24} {statistics.median(wholes):9.2f} images/s over the whole command")


def report(name: str, pairs: list[tuple[float, float, float]]) -> None:
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    spread = f"{min(pair[2] for pair in pairs):.3f}–{max(pair[2] for pair in pairs):.3f}"
    print(f"  {name:24} {medians[0]:9.2f} {medians[1]:9.2f}   ratio {medians[2]:.3f} ({spread})", flush=True)


if __name__ == "__main__":
    main()
