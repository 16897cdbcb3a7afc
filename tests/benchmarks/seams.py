"""Tiles compared with whole images: `python tests/benchmarks/seams.py FOLDER`.

FOLDER holds real images for a mosaic. The networks are the built-in model in fp32, with exact tiles; in bf16, without
decided ties; and a bilinear network of width 8, with inexact tiles, trained here for some hundred steps on the same
images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from maskfleet.jobs.images.decode import decode
from maskfleet.unet import weights
from maskfleet.unet.inference.agreement import Agreement
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.model import UNet
from maskfleet.unet.precision import native

CROP = 96
LARGE = 2100
"""Side of an image of more than 2²² px. In smaller images a plain pass over the whole image decides ties."""


def mosaic(folder: Path, side: int) -> np.ndarray:
    """Images cropped to 256 px, tiled into a square."""
    cells = iter(sorted(folder.iterdir()))
    rows = []
    for _ in range(-(-side // 256)):
        row: list[np.ndarray] = []
        while len(row) < -(-side // 256):
            pixels, *_ = decode(next(cells).read_bytes(), channels=3)
            if min(pixels.shape[:2]) >= 256:
                row.append(pixels[:256, :256])
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)[:side, :side]


def trained_bilinear(folder: Path, steps: int) -> UNet:
    """Good enough to have structure in every level."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = UNet(3, 2, width=8, bilinear=True)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    names = sorted(path.name for path in folder.iterdir())
    for step in range(steps):
        crops, truths = [], []
        for name in random.choice(names, 4):
            pixels, *_ = decode((folder / name).read_bytes(), channels=3)
            truth = np.asarray(Image.open(folder.parent / "masks" / name).convert("L")) > 0
            top, left = (random.integers(0, side - CROP + 1) for side in truth.shape)
            crops.append(pixels[top : top + CROP, left : left + CROP])
            truths.append(truth[top : top + CROP, left : left + CROP])
        x_BCHW = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
        loss = F.cross_entropy(model(x_BCHW), torch.from_numpy(np.stack(truths)).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == steps - 1:
            print(f"bilinear network, width 8: cross-entropy {loss.item():.3f} after {steps} steps")
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=200, help="of the bilinear network's training")
    parser.add_argument("--cores", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--networks", nargs="+", default=["built-in", "bilinear"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    trained = weights.load(weights.builtin("nuclei")).model
    print(f"mosaics of {given.side}² and {LARGE}² px; this processor has {', '.join(native(torch.device('cpu')))}")
    print("| network | core, px | equal pixels | that differ | least Dice of a class |\n|---|---|---|---|---|")
    if "built-in" in given.networks:
        image = mosaic(given.folder, given.side)[None]
        compare("built-in, fp32", trained, "fp32", image, given.cores)
        compare("built-in, bf16", trained, "bf16", image, given.cores)
    if "bilinear" in given.networks:
        bilinear = trained_bilinear(given.folder, given.steps)
        compare("bilinear, fp32", bilinear, "fp32", mosaic(given.folder, LARGE)[None], given.cores)


def compare(name: str, model: UNet, precision: str, image: np.ndarray, cores: list[int]) -> None:
    """Print the difference between tiles and the whole image."""
    whole, _ = Segmenter(model, precision=precision, tile=0).segment(image)
    for core in cores:
        cut, _ = Segmenter(model, precision=precision, tile=core, approximate=True).segment(image)
        found = Agreement.of([(cut, whole)], 2)
        differ = int((cut != whole).sum())
        print(f"| {name} | {core} | {found.agreement:.7f} | {differ} | {found.worst_dice:.7f} |", flush=True)


if __name__ == "__main__":
    main()
