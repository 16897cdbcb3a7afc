"""Tiles against the whole image, as a ratio: `python tests/benchmarks/tiling.py --side 3072`.

One network segments one random image, whole and in tiles, alternating several times; the table shows medians of the
ratios. By arithmetic a ratio is the pixels of all tiles divided by the image's; with many tiles of core c it tends to
((c + 192) / c)², 1.41 for 1024. Both leave out the plain pass that decides ties.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.inference.tiling import Tiling
from maskfleet.unet.model import UNet


def drawn(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)


def without_plain_pass(segmenter: Segmenter) -> None:
    segmenter._passes = segmenter._passes._replace(bounds=segmenter._passes.bounds._replace(plain=0.0))


def seconds(segmenter: Segmenter, image: np.ndarray, clock: Callable[[], float]) -> float:
    started = clock()
    segmenter.segment(image)
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=3072)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--cores", type=int, nargs="+", default=[512, 1024, 1344, 1856])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="of the process, where a machine is shared")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(0)
    model = UNet(3, 2, width=options.width).eval()
    image = drawn(options.side)
    whole = Segmenter(model, precision="fp32", tile=0)
    without_plain_pass(whole)
    whole.segment(image)
    print(f"{options.side}² px, width {options.width}, fp32, {torch.get_num_threads()} threads, {options.pairs} pairs")
    print("core | tiles | by arithmetic | measured (least to most) | whole, Mpx/s | tiles, Mpx/s")
    for core in options.cores:
        cut = Segmenter(model, precision="fp32", tile=core)
        without_plain_pass(cut)
        tiles = Tiling(model.grid, model.halo).spans(options.side, core)
        expected = (len(tiles) * tiles[0].stop / options.side) ** 2
        cut.segment(image)
        pairs = [(seconds(whole, image, clock), seconds(cut, image, clock)) for _ in range(options.pairs)]
        ratios = [tiled / alone for alone, tiled in pairs]
        rates = [options.side**2 / statistics.median(column) / 1e6 for column in zip(*pairs, strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(
            f"{core} | {len(tiles)}² of {tiles[0].stop}² px | {expected:.2f} | {statistics.median(ratios):.2f} ({spread}) | "
            f"{rates[0]:.2f} | {rates[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
