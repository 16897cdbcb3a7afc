"""An image beyond memory through the whole job: `python tests/benchmarks/large_image.py --side 20000`.

Draws a tiled TIFF (or a PNG, or a TIFF in strips), runs `maskfleet run --no-ray` on it with a network of width 8 in fp32,
and observes the memory of the whole tree of processes: RSS counts shared pages once per process, PSS once in total.
Then it compares the mask with the untiled network on crops of more than 2²² px, in which the same blocks decide ties. A
halo and a block at a crop's inner borders are left out, since the crop ends there and the image does not.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyvips
import torch

from maskfleet.unet import weights
from maskfleet.unet.inference.fitting import AUTO_CORE
from maskfleet.unet.inference.near_ties import BLOCK
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.model import UNet

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"tiles.tif": {"tile": True, "compression": "deflate"}, "strips.tif": {"compression": "lzw"}, "rows.png": {}}
GRID, HALO = UNet.grid, UNet.halo
CROP = 36 * BLOCK


def draw(path: Path, side: int, **options) -> None:
    """Draw smooth noise, written while it is computed."""
    bands = [pyvips.Image.gaussnoise(side // 8, side // 8, mean=128, sigma=60, seed=band) for band in range(3)]
    coarse = bands[0].bandjoin(bands[1:]).cast("uchar").copy_memory()
    coarse.resize(side / coarse.width, kernel="cubic").cast("uchar").write_to_file(str(path), **options)


def network() -> UNet:
    """Return a network of width 8, with normalisations other than the identity.

    Its two logits are each other's negative, as trained ones nearly are. Independent random logits hardly differ, with a
    hundred times as many near ties.
    """
    torch.manual_seed(0)
    model = UNet(3, 2, width=8).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            layer.bias.normal_(0, 0.2)
    model.outc.conv.weight[0] = -model.outc.conv.weight[1]
    model.outc.conv.bias.zero_()
    middle = model(torch.rand(1, 3, 256, 256))[:, 1].mean()
    model.outc.conv.bias += torch.stack((middle, -middle))
    return model


def watched(command: list[str]) -> tuple[str, float, dict[str, int]]:
    """Return output, seconds, and peak memory of a command with all its child processes."""
    most: dict[str, int] = {}
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = psutil.Popen(command, stdout=output, env={**os.environ, "PYTHONPATH": str(ROOT)})
        while process.poll() is None:
            seen: dict[str, int] = {"tree, RSS": 0, "tree, PSS": 0}
            for member in [process, *process.children(recursive=True)]:
                try:
                    memory = member.memory_full_info()
                except psutil.Error:
                    continue
                seen["tree, RSS"] += memory.rss
                seen["tree, PSS"] += memory.pss
                if member.pid == process.pid:
                    seen["worker alone, RSS"] = memory.rss
            most = {name: max(value, most.get(name, 0)) for name, value in seen.items()}
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        return output.read().decode(), seconds, most


def starts(side: int) -> list[int]:
    """Return the first rows of crops: at the image's borders, across the first seam of tiles, in the middle."""
    wanted = {0, AUTO_CORE["cpu"] + HALO - CROP // 2, side // 2, side - CROP - side % GRID}
    return sorted({max(0, start) // BLOCK * BLOCK for start in wanted})


def differing(image: Path, mask: Path, model: UNet, side: int) -> tuple[int, int]:
    """Return the number of pixels compared with the untiled network on crops, and of different ones."""
    segmenter = Segmenter(model, precision="fp32", tile=0)
    pixels, different = 0, 0
    last = starts(side)[-1]
    for top in starts(side):
        for left in starts(side):
            # To the image's end, or to a position within a grid cell like the image's end.
            height, width = (side - start if start == last else CROP + side % GRID for start in (top, left))
            crop, found = (
                pyvips.Image.new_from_file(str(path)).crop(left, top, width, height).numpy() for path in (image, mask)
            )
            labels, _ = segmenter.segment(np.ascontiguousarray(crop)[None])
            inner = tuple(
                slice(HALO + BLOCK if start else 0, length if start == last else length - HALO - BLOCK - GRID)
                for start, length in ((top, height), (left, width))
            )
            unlike = labels[0][inner] * 255 != found[inner]
            pixels += unlike.size
            different += int(unlike.sum())
    return pixels, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--kind", choices=KINDS, default="tiles.tif")
    parser.add_argument("--set", action="append", default=[], help="further keys of the job")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "in").mkdir()
        image = folder / "in" / options.kind
        draw(image, options.side, **KINDS[options.kind])
        model = network()
        (folder / "w.safetensors").write_bytes(weights.save(model))
        keys = [
            "inference.precision=fp32",
            "run.max_image_pixels=2_000_000_000",
            *options.set,
        ]
        command = [
            sys.executable,
            "-m",
            "maskfleet",
            "run",
            "--no-ray",
            "--json",
            "--input",
            str(image.parent),
        ]
        command += ["--output", str(folder / "out"), "--weights", str(folder / "w.safetensors")]
        output, seconds, most = watched([*command, *(part for key in keys for part in ("--set", key))])
        assert json.loads(output)["ok"] == 1, output
        (mask,) = (folder / "out" / "masks").iterdir()
        pixels, different = differing(image, mask, model, options.side)
        print(
            f"{options.side}² px, {options.kind}, {image.stat().st_size / 2**20:.0f} MiB; mask {mask.stat().st_size / 2**20:.1f} MiB"
        )
        print(f"{seconds:.0f} s, {options.side**2 / seconds / 1e6:.2f} Mpx/s, {torch.get_num_threads()} threads")
        for name, value in most.items():
            print(f"{name}: {value / 2**20:.0f} MiB")
        print(f"{different} of {pixels} pixels of crops differ from the untiled network's")


if __name__ == "__main__":
    main()
