"""Cost of deciding ties, and distance between passes: `python tests/benchmarks/ties.py FOLDER`.

FOLDER holds images, such as the 342 of nuclei. Each goes through the built-in model in fp32 twice, by the fast pass and
by the plain one. The unit of `unet.inference.near_ties.TIE` is the difference of the two on the Segmenter's own test image, as a
share of the largest logit; everything is told in it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from maskfleet.jobs.images.decode import decode
from maskfleet.unet import weights
from maskfleet.unet.inference import near_ties
from maskfleet.unet.inference.decision import decide
from maskfleet.unet.inference.segmenter import Segmenter

FACTORS = (8, 16, 32, 64, 128)
NEAR = 12_800


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
    one = Segmenter(model, precision="fp32", plain_threads=1)
    unit = one._passes.bounds.plain / near_ties.TIE
    apart, margins, near, flipped = [], [], [], 0
    seconds = {"fast": 0.0, "plain": 0.0}
    with torch.inference_mode():
        for image in images:
            pixels = torch.from_numpy(image[None].copy()).float()
            passes = {}
            for name, forward in (
                ("fast", lambda x: one._resident.forward(x, 1)),
                ("plain", one._resident.plain_forward),
            ):
                started = time.perf_counter()
                passes[name] = forward(pixels.clone())
                seconds[name] += time.perf_counter() - started
            fast, plain = passes["fast"], passes["plain"]
            largest = float(near_ties.largest_logit(fast)[0])
            # The margin is that of the difference between the two logits.
            moved = ((fast[:, 1] - fast[:, 0]) - (plain[:, 1] - plain[:, 0])).abs() / largest / unit
            margin = (plain[:, 1] - plain[:, 0]).abs() / largest / unit
            apart.append(float(moved.max()))
            margins.append(float(margin.min()))
            near.append(float(moved[margin < NEAR].max()) if bool((margin < NEAR).any()) else 0.0)
            flipped += int((decide(fast, None).labels != decide(plain, None).labels).sum())
    total = sum(image.shape[0] * image.shape[1] for image in images)
    print(f"{len(images)} images, {total} px; the unit is {unit:.2e} of the largest logit")
    print(f"margins move by at most {max(apart):.1f} units, within {NEAR} of a tie {max(near):.1f}")
    print(f"{flipped} pixels would have another label by the fast pass")
    print("| factor | images that the plain pass decides | cost, of the fast pass |")
    print("|---|---|---|")
    for factor in FACTORS:
        tied = sum(least < factor for least in margins)
        cost = tied / len(images) * seconds["plain"] / seconds["fast"]
        print(f"| {factor} | {tied} of {len(images)} | {cost:.4f} |", flush=True)
    made = {}
    for factor in (16, 32):
        near_ties.TIE = factor
        made[factor] = Segmenter(model, precision="fp32", plain_threads=1)
    ratios = []
    some = images[::3]
    for pair in range(given.pairs):
        times = {}
        for factor in (16, 32) if pair % 2 else (32, 16):
            started = time.perf_counter()
            for image in some:
                made[factor].segment(image[None])
            times[factor] = time.perf_counter() - started
        ratios.append(times[32] / times[16])
    print(
        f"time with 32 of that with 16, {len(some)} images: {np.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
