"""The same small images as loose files, tar shards and Parquet, without a network.

    python tests/benchmarks/sources.py prepare FOLDER_OR_S3 --images 20000
    python tests/benchmarks/sources.py measure FOLDER_OR_S3 --rounds 3

Each round runs every form once. Compared are whole commands and plans alone, in one process without Ray, with masks in
tar files.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.tar import tar
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.tools.bench import identity_pipeline
from maskfleet.unet import weights
from maskfleet.unet.model import UNet

FORMS = ("loose", "tar", "parquet")
SHARDS = 20


def drawn(count: int, side: int) -> list[tuple[str, bytes]]:
    random = np.random.default_rng(0)
    images = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        sink = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
        images.append((f"{number:06}.jpg", sink.getvalue()))
    return images


def table(images: list[tuple[str, bytes]]) -> bytes:
    """Return a Parquet file of named images in the layout of Hugging Face data sets."""
    sink = io.BytesIO()
    column = pa.array([{"bytes": data, "path": name} for name, data in images])
    pq.write_table(pa.table({"image": column}), sink, row_group_size=100)
    return sink.getvalue()


def prepare(place: str, count: int) -> None:
    storage = open_storage(place)
    images = drawn(count, 64)
    put = getattr(storage, "export", storage.write)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda image: put(f"loose/{image[0]}", image[1]), images))
    each = -(-count // SHARDS)
    for number in range(SHARDS):
        part = images[number * each : (number + 1) * each]
        storage.write(f"tar/{number:03}.tar", tar(part))
        storage.write(f"parquet/{number:03}.parquet", table(part))
    print(f"{count} images, {sum(len(data) for _, data in images) / count:.0f} bytes each, {SHARDS} shards")


def measure(place: str, rounds: int) -> None:
    torch.set_num_threads(1)
    plans: dict[str, list[float]] = {form: [] for form in FORMS}
    rates: dict[str, list[float]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "w.safetensors")
        path.write_bytes(weights.save(UNet(3, 2, width=4)))
        for number in range(rounds):
            for form in FORMS:
                started = time.perf_counter()
                count = sum(1 for _ in Source(f"{place}/{form}", output="/nowhere"))
                plans[form].append(time.perf_counter() - started)
                table = {"input": f"{place}/{form}", "output": f"{scratch}/{form}-{number}", "weights": str(path)}
                started = time.perf_counter()
                summary = run(Job.of(table, ["masks.format=tar"]), InProcess(identity_pipeline))
                assert (summary.ok, summary.images) == (count, count)
                rates[form].append(count / (time.perf_counter() - started))
                print(f"{form:8} listed in {plans[form][-1]:6.2f} s, {rates[form][-1]:7.1f} images/s", flush=True)
    for form in FORMS:
        pairs = [rate / loose for rate, loose in zip(rates[form], rates["loose"], strict=True)]
        spread = f"{min(pairs):.2f}-{max(pairs):.2f}"
        print(
            f"{form:8} medians: listed in {statistics.median(plans[form]):.2f} s, "
            f"{statistics.median(rates[form]):.0f} images/s, ratio to loose {statistics.median(pairs):.2f} ({spread})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=("prepare", "measure"))
    parser.add_argument("place")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    place = options.place if "://" in options.place else os.path.abspath(options.place)
    prepare(place, options.images) if options.do == "prepare" else measure(place, options.rounds)


if __name__ == "__main__":
    main()
