"""Reduced precision against fp32 on real images: `python tests/benchmarks/reduced_precision.py FOLDER`.

FOLDER has images/ and masks/ with equal names, such as the 342 images of nuclei. The built-in model segments each image
by itself in both precisions, as a job does. Dice compares the foreground with the true mask.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskfleet.jobs.images.decode import decode
from maskfleet.unet import weights
from maskfleet.unet.inference.agreement import Agreement
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.precision import native


def dice(labels: np.ndarray, truth: np.ndarray) -> float:
    size = labels.sum() + truth.sum()
    return 2 * float((labels & truth).sum()) / float(size) if size else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16"])
    options = parser.parse_args()
    model = weights.load(weights.builtin("nuclei")).model
    names = sorted(path.name for path in (options.folder / "images").iterdir())
    segmenters = {name: Segmenter(model, precision=name) for name in ("fp32", options.precision)}
    labels: dict[str, list[np.ndarray]] = {name: [] for name in segmenters}
    seconds: dict[str, list[float]] = {name: [] for name in segmenters}
    truths = []
    for name in names:
        pixels, *_ = decode((options.folder / "images" / name).read_bytes(), channels=model.n_channels)
        with Image.open(options.folder / "masks" / name) as mask:
            truths.append(np.asarray(mask.convert("L")) > 0)
        for precision, segmenter in segmenters.items():
            started = time.perf_counter()
            found, _ = segmenter.segment(pixels[None])
            seconds[precision].append(time.perf_counter() - started)
            labels[precision].append(found[0])
    pairs = list(zip(labels[options.precision], labels["fp32"], strict=True))
    shares = [float((ours == exact).mean()) for ours, exact in pairs]
    agreement = Agreement.of(pairs, 2)
    scores = {
        name: [dice(mask > 0, truth) for mask, truth in zip(found, truths, strict=True)]
        for name, found in labels.items()
    }
    differences = [a - b for a, b in zip(scores[options.precision], scores["fp32"], strict=True)]
    print(
        f"{len(names)} images, {torch.get_num_threads()} threads; this processor has {', '.join(native(torch.device('cpu')))}"
    )
    print(f"equal pixels: {agreement.agreement:.6f}; median image {statistics.median(shares):.6f}")
    print(f"worst image: {agreement.worst_agreement:.6f} ({names[agreement.worst_image]})")
    print(f"images below 0.999: {sum(share < 0.999 for share in shares)}")
    print(f"least Dice of a class against fp32: {agreement.worst_dice:.6f} (class {agreement.worst_class})")
    for name, found in scores.items():
        print(f"mean Dice against the truth, {name}: {statistics.mean(found):.6f}")
    worst = max(range(len(names)), key=lambda index: abs(differences[index]))
    print(
        f"difference of Dice: mean {statistics.mean(differences):+.6f}, most {differences[worst]:+.6f} ({names[worst]})"
    )
    for name, each in seconds.items():
        print(f"median ms per image, {name}: {1e3 * statistics.median(each):.1f}")


if __name__ == "__main__":
    main()
