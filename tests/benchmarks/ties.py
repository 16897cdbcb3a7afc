"""Cost of deciding ties, and distance between passes: `python tests/benchmarks/ties.py FOLDER`.

FOLDER contains images, such as the 342 of nuclei. Each passes through the built-in model in fp32 twice: by the fast pass
and by the plain one. All results are in the unit of `unet.inference.near_ties.TIE`: the difference of the two passes on the
Segmenter's own test image, as a share of the largest logit.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskfleet.jobs.images.decode import decode
from maskfleet.unet import weights
from maskfleet.unet.inference import near_ties
from maskfleet.unet.inference.decision import decide
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.network import Network

FACTORS = (8, 16, 32, 64, 128)
NEAR = 12_800
"""Largest margin of a near tie, in units of `TIE`."""


@dataclass
class Comparison:
    """The fast and the plain pass over all images, in units of `TIE`.

    Attributes:
        apart: Largest change of a margin between the passes, by image.
        margins: Smallest margin of the plain pass, by image.
        near: Largest change of a margin below `NEAR`, by image; 0.0 if there is none.
        flipped: Number of pixels with different labels.
        seconds: Seconds of all images by pass.
    """

    apart: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    flipped: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"fast": 0.0, "plain": 0.0})

    def add(self, fast: Tensor, plain: Tensor, unit: float) -> None:
        """Compare the logits of one image by both passes."""
        largest = float(near_ties.largest_logit(fast)[0])
        # The margin is the difference between the two logits.
        moved = ((fast[:, 1] - fast[:, 0]) - (plain[:, 1] - plain[:, 0])).abs() / largest / unit
        margin = (plain[:, 1] - plain[:, 0]).abs() / largest / unit
        self.apart.append(float(moved.max()))
        self.margins.append(float(margin.min()))
        self.near.append(float(moved[margin < NEAR].max()) if bool((margin < NEAR).any()) else 0.0)
        self.flipped += int((decide(fast, None).labels != decide(plain, None).labels).sum())


def compare(segmenter: Segmenter, images: Sequence[NDArray[np.uint8]], unit: float) -> Comparison:
    """Run every image through both passes."""
    found = Comparison()
    passes = {"fast": lambda x: segmenter._resident.forward(x, 1), "plain": segmenter._resident.plain_forward}
    with torch.inference_mode():
        for image in images:
            pixels = torch.from_numpy(image[None].copy()).float()
            logits = {}
            for name, forward in passes.items():
                started = time.perf_counter()
                logits[name] = forward(pixels.clone())
                found.seconds[name] += time.perf_counter() - started
            found.add(logits["fast"], logits["plain"], unit)
    return found


def time_ratios(model: Network, images: Sequence[NDArray[np.uint8]], pairs: int) -> list[float]:
    """Return the time with `TIE` = 32 as a share of the time with 16, once per pair."""
    made = {}
    for factor in (16, 32):
        near_ties.TIE = factor
        made[factor] = Segmenter(model, precision="fp32", plain_threads=1)
    ratios = []
    for pair in range(pairs):
        times = {}
        for factor in (16, 32) if pair % 2 else (32, 16):
            started = time.perf_counter()
            for image in images:
                made[factor].segment(image[None])
            times[factor] = time.perf_counter() - started
        ratios.append(times[32] / times[16])
    return ratios


def show(found: Comparison, images: Sequence[NDArray[np.uint8]], unit: float) -> None:
    """Print the comparison, and the cost of each factor."""
    total = sum(image.shape[0] * image.shape[1] for image in images)
    print(f"{len(images)} images, {total} px; the unit is {unit:.2e} of the largest logit")
    print(f"margins move by at most {max(found.apart):.1f} units, within {NEAR} of a tie {max(found.near):.1f}")
    print(f"{found.flipped} pixels would have another label by the fast pass")
    print("| factor | images decided by the plain pass | cost, as a share of the fast pass |")
    print("|---|---|---|")
    for factor in FACTORS:
        tied = sum(least < factor for least in found.margins)
        cost = tied / len(images) * found.seconds["plain"] / found.seconds["fast"]
        print(f"| {factor} | {tied} of {len(images)} | {cost:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=3, help="use every n-th image")
    parser.add_argument("--pairs", type=int, default=3, help="number of timings with each factor")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = weights.load(weights.builtin("nuclei")).model
    paths = sorted(given.folder.iterdir())[:: given.every]
    images = [decode(path.read_bytes(), channels=model.n_channels)[0] for path in paths]
    segmenter = Segmenter(model, precision="fp32", plain_threads=1)
    unit = segmenter._passes.bounds.plain / near_ties.TIE
    show(compare(segmenter, images, unit), images, unit)
    some = images[::3]
    ratios = time_ratios(model, some, given.pairs)
    print(
        f"time with 32 as a share of that with 16, {len(some)} images: "
        f"{np.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
