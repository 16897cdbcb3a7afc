"""Batches of augmented crops. A batch follows from the seed and its number, so training resumes exactly."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from maskfleet.jobs.training.pairs import Pair

_ZOOM = (0.75, 1.3)


class Crops:
    """Random square crops of pairs of any size.

    Augmentations: zoom, flips, quarter turns, brightness and gamma, colour, blur and noise; of normalised floats zoom,
    flips, quarter turns, brightness and noise. Pairs are grouped by size
    and brightness; each group is sampled in proportion to the square root of its size, so rare groups are not lost.

    Args:
        pairs: Training pairs.
        side: Side of a crop in px.
        batch_size: Number of crops per batch.
        seed: Random seed. Together with a batch's number it determines the batch.
    """

    def __init__(self, pairs: Sequence[Pair], *, side: int, batch_size: int, seed: int) -> None:
        self._pairs, self._side, self._batch_size, self._seed = pairs, side, batch_size, seed
        groups = [(pair.truth.shape, _is_bright(pair.image)) for pair in pairs]
        self._as_floats = any(pair.image.dtype != np.uint8 for pair in pairs)
        counts = Counter(groups)
        weights = np.array([counts[group] ** -0.5 for group in groups])
        self._probabilities = weights / weights.sum()

    def keys(self, number: int) -> list[str]:
        """Return the keys of the images in a batch."""
        return [self._pairs[index].key for index in self._drawn(np.random.default_rng((self._seed, number)))]

    def batch(self, number: int, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return pixels (B, C, H, W) and classes (B, H, W) of a batch or a share of it.

        Classes are uint8. Pixels are uint8, or fp32 in a training with images that are not of 8 bits.

        Args:
            number: Number of the batch, from 0.
            share: Positions of the wanted crops within the batch.
        """
        indices = list(enumerate(self._drawn(np.random.default_rng((self._seed, number)))))
        # Each crop has its own generator, so a rank computes only its share.
        drawn = [
            _crop(self._pairs[index], self._side, np.random.default_rng((self._seed, number, place)))
            for place, index in indices[share]
        ]
        images = [_in_unit(image) if self._as_floats else image for image, _ in drawn]
        pixels = np.stack(images).transpose(0, 3, 1, 2)
        return torch.from_numpy(pixels), torch.from_numpy(np.stack([truth for _, truth in drawn]))

    def _drawn(self, random: np.random.Generator) -> NDArray[np.int64]:
        return random.choice(len(self._pairs), self._batch_size, p=self._probabilities)


def _is_bright(image: NDArray[Any]) -> bool:
    return bool(image[::4, ::4].mean() > (127 if image.dtype == np.uint8 else 0.5))


def _in_unit(image: NDArray[Any]) -> NDArray[np.float32]:
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


def _crop(pair: Pair, side: int, random: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    height, width = pair.truth.shape
    window = max(1, min(height, width, int(side * random.uniform(*_ZOOM))))
    top, left = int(random.integers(height - window + 1)), int(random.integers(width - window + 1))
    box = (left, top, left + window, top + window)
    channels = pair.image.shape[2]
    blur = random.uniform(0.3, 1.2) if random.random() < 0.15 else 0.0
    cut = np.ascontiguousarray(pair.image[top : top + window, left : left + window])
    together = channels == 3 and cut.dtype == np.uint8
    planes = [Image.fromarray(cut)] if together else [Image.fromarray(cut[..., c]) for c in range(channels)]
    planes = [plane.resize((side, side), Image.Resampling.BILINEAR) for plane in planes]
    if blur and cut.dtype == np.uint8:  # Pillow blurs no floats
        planes = [plane.filter(ImageFilter.GaussianBlur(blur)) for plane in planes]
    pixels = np.asarray(planes[0]) if together else np.stack([np.asarray(plane) for plane in planes], axis=2)
    classes = np.asarray(Image.fromarray(pair.truth).resize((side, side), Image.Resampling.NEAREST, box))
    turns = int(random.integers(4))
    pixels, classes = np.rot90(pixels, turns), np.rot90(classes, turns)
    if random.random() < 0.5:
        pixels, classes = pixels[:, ::-1], classes[:, ::-1]
    varied = _recoloured(_brightened(pixels, random), random) if cut.dtype == np.uint8 else _varied(pixels, random)
    return varied, np.ascontiguousarray(classes)


def _varied(pixels: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return normalised pixels with another gain, of all bands or of each, and perhaps noise."""
    gain = random.uniform(0.7, 1.4) * (random.uniform(0.85, 1.15, pixels.shape[2]) if random.random() < 0.3 else 1.0)
    found = np.asarray(pixels * gain, np.float32)
    if random.random() < 0.15:
        found += random.normal(0, random.uniform(0.02, 0.1) * float(pixels.std()), found.shape).astype(np.float32)
    return np.ascontiguousarray(found)


def _brightened(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    # Gain and gamma only: an offset would swamp the many images with nuclei at a tenth of full brightness.
    curve = np.linspace(0, 1, 256) ** random.uniform(0.75, 1.3) * random.uniform(0.7, 1.4)
    if random.random() < 0.1:
        curve = 1 - curve
    table = (curve.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(table[pixels])


def _recoloured(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return the pixels with a random stain shift, greyscale conversion or sensor noise, or unchanged."""
    light = pixels.astype(np.float32)
    stain = random.random()
    if stain < 0.3:
        light *= random.uniform(0.85, 1.15, (pixels.shape[2],)).astype(np.float32)
    elif stain < 0.4:
        light = np.repeat(light.mean(axis=2, keepdims=True), pixels.shape[2], axis=2)
    if random.random() < 0.15:
        light += random.normal(0, random.uniform(1, 6), light.shape).astype(np.float32)
    return np.clip(light, 0, 255).round().astype(np.uint8)
