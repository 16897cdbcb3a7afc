"""Pairs of image and mask to weights: reads and splits them, draws crops, trains, validates, saves.

`python -m jobs.finetune --images DIR --masks DIR --output model.safetensors` makes the built-in
model again.
"""

import argparse
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.decode import decode
from unet import weights
from unet.finetune import Training
from unet.model import UNet
from unet.segmenter import Segmenter

HELD_BACK = 0.2
"""Share of the pairs that validation alone sees."""

_LOG = logging.getLogger(__name__)


class Pair(NamedTuple):
    """An image and its truth.

    Attributes:
        image: (H, W, 3), uint8.
        truth: Class of each pixel, (H, W), uint8.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def held_back(content: bytes) -> bool:
    """Whether an image file is for validation: by its bytes, so that no name, order or copy changes the split."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") < HELD_BACK * 2**32


def read_pairs(images: Path, masks: Path) -> tuple[list[Pair], list[Pair]]:
    """Pairs for training and for validation, from two folders with equal file names.

    Raises:
        FileNotFoundError: An image has no mask.
        ValueError: A mask has another size than its image, or there are too few pairs to hold any back.
    """
    training: list[Pair] = []
    validation: list[Pair] = []
    for path in sorted(images.iterdir()):
        content = path.read_bytes()
        image, _ = decode(content, channels=3)
        with Image.open(masks / path.name) as mask:
            truth = (np.asarray(mask.convert("L")) > 127).astype(np.uint8)
        if truth.shape != image.shape[:2]:
            raise ValueError(f"mask of {path.name} is {truth.shape[::-1]} px and the image {image.shape[1::-1]}")
        (validation if held_back(content) else training).append(Pair(image, truth))
    if not training or not validation:
        raise ValueError(
            f"{len(training)} and {len(validation)} held back: both parts of the split need pairs; give more"
        )
    return training, validation


def crops(pairs: Sequence[Pair], *, side: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of augmented square crops: zoomed, flipped, turned, brightened, sometimes inverted.

    Sizes stand for kinds of microscope; a rare one is drawn more often than its share, by the root
    of its count.
    """
    random = np.random.default_rng(seed)
    counts = Counter(pair.truth.shape for pair in pairs)
    chance = np.array([counts[pair.truth.shape] ** -0.5 for pair in pairs])
    chance /= chance.sum()
    while True:
        drawn = [_crop(pairs[random.choice(len(pairs), p=chance)], side, random) for _ in range(batch_size)]
        pixels = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
        yield torch.from_numpy(pixels), torch.from_numpy(np.stack([truth for _, truth in drawn]))


def _crop(pair: Pair, side: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = pair.truth.shape
    window = min(height, width, int(side * random.uniform(0.7, 1.4)))
    top, left = random.integers(height - window + 1), random.integers(width - window + 1)
    box = (left, top, left + window, top + window)
    image = Image.fromarray(pair.image).resize((side, side), Image.Resampling.BILINEAR, box)
    truth = Image.fromarray(pair.truth).resize((side, side), Image.Resampling.NEAREST, box)
    turns, mirrored = int(random.integers(4)), random.random() < 0.5
    pixels = np.rot90(np.asarray(image), turns)
    classes = np.rot90(np.asarray(truth), turns)
    if mirrored:
        pixels, classes = pixels[:, ::-1], classes[:, ::-1]
    return _relit(pixels, random), np.ascontiguousarray(classes)


def _relit(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    # Gain and gamma only: an offset would drown the many images whose nuclei are a tenth as bright as white.
    curve = np.linspace(0, 1, 256) ** random.uniform(0.75, 1.3) * random.uniform(0.7, 1.4)
    if random.random() < 0.1:
        curve = 1 - curve
    table = (curve.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(table[pixels])


def dice_scores(model: torch.nn.Module, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Dice of class 1 of each whole image, in fp32; (images,). An image without it scores 1 if none is found."""
    segmenter = Segmenter(model, precision="fp32")
    return np.array([dice(segmenter.segment(pair.image[None])[0][0], pair.truth) for pair in pairs])


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """2 |A ∩ B| / (|A| + |B|) of the pixels that are not 0; 1 if both have none."""
    total = np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * np.count_nonzero((found > 0) & (truth > 0)) / total if total else 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on two folders and write weights with their scores."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(options.seed)
    training, validation = read_pairs(options.images, options.masks)
    _LOG.info("%d pairs to train on, %d held back", len(training), len(validation))
    model = UNet(3, 2, width=options.width)
    batches = crops(training, side=options.side, batch_size=options.batch_size, seed=options.seed)
    learning = Training(model, steps=options.steps, learning_rate=1e-3)
    for pixels, truth in islice(batches, options.steps):
        step = learning.step(pixels, truth)
        if step.number % 50 == 0:
            _LOG.info("step %d loss %.4f %.3f s", step.number, step.loss, step.seconds)
        if step.number % (options.steps // 5) == 0:
            scores = _save(learning.result, validation, len(training), options)
            _LOG.info("step %d Dice mean %.4f median %.4f", step.number, scores.mean(), np.median(scores))


def _save(model: UNet, validation: Sequence[Pair], trained_on: int, options: argparse.Namespace) -> NDArray[np.float64]:
    """Write the weights in fp16 with the scores that this file, read back, has."""
    stored = weights.load(weights.save(model, dtype=torch.float16)).model
    scores = dice_scores(stored, validation)
    metadata = {
        "data": "2018 Data Science Bowl, stage 1, CC0",
        "split": f"{trained_on} to train on, {len(validation)} held back by jobs.finetune.held_back",
        "recipe": f"{options.steps} steps of {options.batch_size} crops of {options.side} px, seed {options.seed}",
        "dice_mean": f"{scores.mean():.4f}",
        "dice_median": f"{np.median(scores):.4f}",
        "dice_worst": f"{scores.min():.4f}",
    }
    data = weights.save(model, mask_values=(0, 255), metadata=metadata, dtype=torch.float16)
    options.output.write_bytes(data)
    return scores


if __name__ == "__main__":
    main()
