"""Batches of augmented crops. A batch follows from the seed and its number, so training resumes exactly."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from maskfleet.jobs.training.pairs import Pair

_ZOOM = (0.75, 1.3)


class Crops:
    """Random square crops of pairs of any size.

    Augmentations: zoom, flips, quarter turns, brightness and gamma, colour, blur and noise. Pairs are grouped by size
    and brightness; each group is sampled in proportion to the square root of its size, so rare groups are not lost.

    Args:
        pairs: Training pairs.
        side: Side of a crop in px.
        batch_size: Number of crops per batch.
        seed: Random seed. Together with a batch's number it determines the batch.
    """

    def __init__(self, pairs: Sequence[Pair], *, side: int, batch_size: int, seed: int) -> None:
        self._pairs, self._side, self._batch_size, self._seed = pairs, side, batch_size, seed
        groups = [(pair.truth.shape, bool(pair.image[::4, ::4].mean() > 127)) for pair in pairs]
        counts = Counter(groups)
        weights = np.array([counts[group] ** -0.5 for group in groups])
        self._probabilities = weights / weights.sum()

    def keys(self, number: int) -> list[str]:
        """Return the keys of the images in a batch."""
        return [self._pairs[index].key for index in self._drawn(np.random.default_rng((self._seed, number)))]

    def batch(self, number: int, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return pixels (B, C, H, W) and classes (B, H, W) of a batch or a share of it, uint8.

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
        pixels = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
        return torch.from_numpy(pixels), torch.from_numpy(np.stack([truth for _, truth in drawn]))

    def _drawn(self, random: np.random.Generator) -> NDArray[np.int64]:
        return random.choice(len(self._pairs), self._batch_size, p=self._probabilities)


def _crop(pair: Pair, side: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = pair.truth.shape
    window = max(1, min(height, width, int(side * random.uniform(*_ZOOM))))
    top, left = int(random.integers(height - window + 1)), int(random.integers(width - window + 1))
    box = (left, top, left + window, top + window)
    channels = pair.image.shape[2]
    blur = random.uniform(0.3, 1.2) if random.random() < 0.15 else 0.0
    cut = np.ascontiguousarray(pair.image[top : top + window, left : left + window])
    planes = [Image.fromarray(cut)] if channels == 3 else [Image.fromarray(cut[..., c]) for c in range(channels)]
    planes = [plane.resize((side, side), Image.Resampling.BILINEAR) for plane in planes]
    if blur:
        planes = [plane.filter(ImageFilter.GaussianBlur(blur)) for plane in planes]
    pixels = np.asarray(planes[0]) if channels == 3 else np.stack([np.asarray(plane) for plane in planes], axis=2)
    classes = np.asarray(Image.fromarray(pair.truth).resize((side, side), Image.Resampling.NEAREST, box))
    turns = int(random.integers(4))
    pixels, classes = np.rot90(pixels, turns), np.rot90(classes, turns)
    if random.random() < 0.5:
        pixels, classes = pixels[:, ::-1], classes[:, ::-1]
    return _recoloured(_brightened(pixels, random), random), np.ascontiguousarray(classes)


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
