"""Effect of the batch on a CPU: `python tests/benchmarks/batches.py`.

Images per second of CPU time of one thread, for `Segmenter.segment` on random images, by batch. The batches of a row
take turns in several rounds; the table shows medians. `auto` is the default batch of a job.
"""

import argparse
import itertools
import time

import numpy as np
import torch

from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.model import UNet

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def rates(segmenter: Segmenter, side: int, *, rounds: int, most_seconds: float) -> dict[int, float]:
    """Return images per CPU second of each batch within the time limit."""
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), side, side, 3), np.uint8)
    segmenter._fitting._batch_size = 1
    segmenter.segment(images[:1])
    started = time.process_time()
    segmenter.segment(images[:1])
    one = time.process_time() - started
    seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES if batch * one <= most_seconds}
    for number in range(rounds):
        for batch in list(seconds) if number % 2 else reversed(seconds):
            segmenter._fitting._batch_size = batch
            segmenter.segment(images[:batch])  # warms up: memory of this shape
            started = time.process_time()
            repeats = max(1, min(8, int(0.1 / (batch * one))))
            for _ in range(repeats):
                segmenter.segment(images[:batch])
            seconds[batch].append((time.process_time() - started) / (repeats * batch))
    return {batch: 1 / float(np.median(times)) for batch, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-seconds", type=float, default=4.0, help="time limit of a batch")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| width | side | precision | " + " | ".join(map(str, BATCHES)) + " | auto | best, of auto |")
    print("|" + "---|" * (5 + len(BATCHES)))
    for width, side, precision in itertools.product(given.widths, given.sides, given.precisions):
        torch.manual_seed(0)
        segmenter = Segmenter(UNet(3, 2, width=width), precision=precision)
        auto = segmenter.batch_size(side, side)
        found = rates(segmenter, side, rounds=given.rounds, most_seconds=given.most_seconds)
        # If the automatic batch was too slow to try, the largest batch tried is the closest.
        reference = found[max(batch for batch in found if batch <= auto)]
        cells = [f"{found[batch]:.2f}" if batch in found else "" for batch in BATCHES]
        print(
            f"| {width} | {side} | {precision} | {' | '.join(cells)} | {auto} | {max(found.values()) / reference:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
