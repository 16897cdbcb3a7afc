"""Synthetic microscopy with known ground truth for the demo: several sizes and formats, and three broken files."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from maskfleet.jobs.training.scores import dice

SIZES = ((256, 256), (256, 320), (360, 360), (520, 696))
"""Heights and widths of the images in px."""

STAINED = 0.15
"""Share of images drawn as stained tissue: dark nuclei on a bright ground. The others are fluorescence images."""


@dataclass(frozen=True)
class Drawn:
    """Drawn images.

    Attributes:
        images: Folder of the images and broken files.
        truth: Folder of ground-truth masks (PNG, 0 and 255) with the names of the images.
        broken: Number of broken files in `images`.
    """

    images: Path
    truth: Path
    broken: int


def draw(folder: Path, *, images: int = 240, seed: int = 0) -> Drawn:
    """Draw images with their ground truth, and three broken files.

    Args:
        folder: Parent of the new folders `images/` and `truth/`.
        images: Number of images.
        seed: Random seed; equal seeds give equal files.
    """
    random = np.random.default_rng(seed)
    drawn = Drawn(folder / "images", folder / "truth", 3)
    for number in range(images):
        height, width = SIZES[number % len(SIZES)]
        pixels, truth = _scene(height, width, random)
        name = f"plate-{number % 3 + 1}/well-{number:04}"
        _write(drawn.images / name, pixels, number)
        (drawn.truth / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth).save(f"{drawn.truth / name}.png", compress_level=1)
    _write_broken(drawn.images)
    return drawn


def mean_dice(masks: Path, truth: Path) -> float:
    """Return the mean Dice of masks against the ground truth of the same name; a missing mask scores 0.

    Args:
        masks: Folder of PNG masks.
        truth: Folder of ground-truth masks.
    """
    scores = []
    for path in sorted(truth.rglob("*.png")):
        found = masks / path.relative_to(truth)
        scores.append(dice(_read(found), _read(path)) if found.exists() else 0.0)
    return float(np.mean(scores))


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _scene(height: int, width: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    truth = Image.new("L", (width, height))
    light = np.zeros((height, width), np.float32)
    radius = random.uniform(7, 16)
    for _ in range(int(height * width / (radius * 2) ** 2 * random.uniform(0.12, 0.3))):
        _nucleus(truth, light, radius * random.uniform(0.75, 1.3), random)
    mask = np.asarray(truth)
    grain = _cloud(height, width, 6, random) * 0.25 + 1
    sharp = Image.fromarray(((light * grain).clip(0, 1) * 255).astype(np.uint8))
    glow = np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.8)), np.float32) / 255
    if random.random() < STAINED:
        return _stained(glow, random), mask
    ground = random.uniform(0.02, 0.08) * (1 + 0.4 * _cloud(height, width, 60, random))
    noisy = (glow + ground) * (1 + random.normal(0, 0.03, glow.shape)) + random.normal(0, 0.008, glow.shape)
    return (noisy.clip(0, 1) * 255).astype(np.uint8), mask


def _nucleus(truth: Image.Image, light: NDArray[Any], radius: float, random: np.random.Generator) -> None:
    height, width = light.shape
    box = int(radius * 2) + 3
    x, y = int(random.integers(0, width)), int(random.integers(0, height))
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = (
        radius
        * (1 + 0.06 * random.normal(size=24).cumsum().clip(-2, 2) / 2)
        * np.hypot(np.cos(angle) * random.uniform(0.75, 1), np.sin(angle))
    )
    turn = random.uniform(0, np.pi)
    points = [(box + r * np.cos(a + turn), box + r * np.sin(a + turn)) for a, r in zip(angle, reach, strict=True)]
    stamp = Image.new("L", (2 * box, 2 * box))
    ImageDraw.Draw(stamp).polygon(points, fill=255)
    truth.paste(255, (int(x) - box, int(y) - box), stamp)
    left, top = max(0, x - box), max(0, y - box)
    right, bottom = min(width, x + box), min(height, y + box)
    inside = np.asarray(stamp, np.float32)[top - y + box : bottom - y + box, left - x + box : right - x + box] / 255
    patch = light[top:bottom, left:right]
    np.maximum(patch, inside * random.uniform(0.25, 0.8), out=patch)


def _stained(glow: NDArray[Any], random: np.random.Generator) -> NDArray[np.uint8]:
    tissue = np.array([0.85, 0.7, 0.82]) - 0.06 * _cloud(glow.shape[0], glow.shape[1], 12, random)[..., None]
    stain = np.array([0.55, 0.6, 0.35]) * glow.clip(0, 1)[..., None]
    pixels: NDArray[Any] = (tissue - stain + random.normal(0, 0.015, tissue.shape)).clip(0, 1) * 255
    return pixels.astype(np.uint8)


def _cloud(height: int, width: int, grain: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise of about -1 to 1 with features of `grain` px, (height, width)."""
    coarse = random.normal(size=(height // grain + 2, width // grain + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _write(path: Path, pixels: NDArray[np.uint8], number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if number % 2:
        image.save(f"{path}.jpg", quality=92)
    else:
        image.convert("RGBA" if number % 4 else image.mode).save(f"{path}.png", compress_level=1)


def _write_broken(folder: Path) -> None:
    intact = io.BytesIO()
    Image.new("RGB", (256, 256), (40, 60, 40)).save(intact, "JPEG")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cut-off.jpg").write_bytes(intact.getvalue()[: len(intact.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "error-page.jpg").write_text("<!doctype html><title>503 Service Unavailable</title>")
