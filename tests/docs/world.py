"""A folder like the reader's: images, job files, a checkpoint, finished outputs, and the same images in a bucket."""

import io
import shutil
from pathlib import Path

import numpy as np
import torch
from conftest import seeded
from PIL import Image
from typer.testing import CliRunner

from maskfleet.cluster.cli.main import app

BUCKET = "microscopy"
"""Bucket of the documentation's examples."""

DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")

LOCAL = """
name = "nuclei"
input = "images"
output = "out"
weights = "nuclei"
"""

NIGHTLY = """
name = "nightly"
input = "days/{date}"
output = "out/{date}"
weights = "nuclei"
"""

IN_S3 = """
name = "nuclei"
input = "s3://microscopy/plates/"
output = "s3://microscopy/masks/"
weights = "nuclei"
"""

SCHEDULE = """
[schedule]
cron = "30 2 * * *"
"""

PAIRS = (f"s3://{BUCKET}/corrected/images/", f"s3://{BUCKET}/corrected/masks/")
"""Folders of images and of their corrected masks."""


def prepare(folder: Path) -> None:
    """Fill a folder with everything the pages mention, finished outputs included."""
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "more/d.jpg")):
        _write(folder / "images" / name, _nucleus(number))
    for number, day in enumerate(DAYS):
        _write(folder / "days" / day / f"{number}.jpg", _nucleus(number))
    checkpoint = seeded().state_dict() | {"mask_values": [0, 1]}
    for name in ("checkpoint.pth", "model.pth"):
        torch.save(checkpoint, folder / name)
    torch.save({"state_dict": {f"model.{name}": value for name, value in checkpoint.items()}}, folder / "last.ckpt")
    for form in ("png", "parquet", "rle"):
        output = folder / ("out" if form == "png" else f"out-{form}")
        given = ["--input", folder / "images", "--output", output, "--weights", "nuclei", "--no-ray"]
        done = CliRunner().invoke(app, ["run", *map(str, given), "--set", f"masks.format={form}"])
        assert done.exit_code == 0, done.output


def copy(prepared: Path, folder: Path, job: str, *, outputs: bool) -> None:
    """Copy a prepared folder: all of it with a job file of this text and one with a date, or without outputs and jobs."""
    shutil.copytree(prepared, folder, dirs_exist_ok=True, ignore=None if outputs else shutil.ignore_patterns("out*"))
    if outputs:
        (folder / "job.toml").write_text(job + SCHEDULE)
        (folder / "nightly.toml").write_text(NIGHTLY)


def fill_bucket() -> None:
    """Put images and pairs into the bucket, and nothing else."""
    import s3fs

    storage = s3fs.S3FileSystem(skip_instance_cache=True)
    if storage.exists(BUCKET):
        storage.rm(BUCKET, recursive=True)
    storage.mkdir(BUCKET)
    for number, name in enumerate(("a/b.jpg", "a/c.jpg", "d.jpg", "e.jpg")):
        storage.pipe(f"{BUCKET}/plates/{name}", _nucleus(number))
    for number in range(16):
        random = np.random.default_rng(number)
        truth = (random.random((4, 4)) > 0.5).repeat(16, axis=0).repeat(16, axis=1)
        pixels = (truth * 150 + random.integers(20, 60, truth.shape)).astype(np.uint8)
        storage.pipe(f"{BUCKET}/corrected/images/{number:02}.png", _png(np.stack([pixels] * 3, axis=2)))
        storage.pipe(f"{BUCKET}/corrected/masks/{number:02}.png", _png((truth * 255).astype(np.uint8)))


def _nucleus(number: int) -> bytes:
    """Return a JPEG of a bright disk on black, found by the built-in model."""
    y, x = np.mgrid[:64, :64]
    pixels = np.where((y - 32) ** 2 + (x - 28 - number) ** 2 < 100, 200, 10).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
