"""Which precision a device computes well in, and how far its masks are from fp32's."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskfleet.unet.inference.segmenter import Segmenter

Resolved = Literal["fp32", "bf16", "fp16"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

EXACTNESS: tuple[Resolved, ...] = ("bf16", "fp16", "fp32")
"""From 8 bits of mantissa over 11 to 24."""

_CLEARLY = 1.1
"""A less exact precision must be this many times as fast, so that noise does not decide."""


class DeviceError(RuntimeError):
    """The device that was asked for is not there, or cannot do what was asked; the message says what to do."""


def device_named(name: str) -> torch.device:
    """The device of that name.

    Raises:
        DeviceError: It is not there, or of a kind that is not supported.
    """
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"there is no {name}: PyTorch {torch.__version__} sees no GPU; check nvidia-smi and the CUDA build"
        )
    return device


def native(device: torch.device) -> tuple[Resolved, ...]:
    """The precisions that a device has instructions for, in the order of `EXACTNESS`."""
    if device.type == "cuda":
        fast = {"bf16": torch.cuda.is_bf16_supported(including_emulation=False), "fp16": True}
    else:
        instructions = torch.cpu.get_capabilities()
        fast = {
            "bf16": any(instructions.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")),
            "fp16": any(instructions.get(name) for name in ("avx512_fp16", "amx_fp16")),
        }
    return tuple(precision for precision in EXACTNESS if precision == "fp32" or fast[precision])


def resolved(precision: Precision, device: torch.device) -> Resolved:
    """What `precision` means on a device before anything is measured: of "auto", the first that is native.

    Raises:
        DeviceError: The device cannot compute in that precision.
    """
    if precision == "auto":
        return native(device)[0]
    works = precision in native(device) or (
        # oneDNN computes both where the processor cannot, exactly and slowly: a way to try a GPU's precision.
        device.type == "cpu"
        and {
            "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
            "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
        }[precision]()
    )
    if not works:
        raise DeviceError(f"{device} cannot compute in {precision}; set inference.precision to 'auto' or 'fp32'")
    return precision


def above(precision: Resolved, device: torch.device) -> Resolved:
    """The next more exact precision that is native."""
    return next(
        other for other in native(device) if other == "fp32" or EXACTNESS.index(other) > EXACTNESS.index(precision)
    )


def fastest(seconds: dict[Resolved, float]) -> Resolved:
    """Of precisions and their times, the quickest; of those about as quick, the most exact."""
    least = min(seconds.values())
    return max((name for name in seconds if seconds[name] <= least * _CLEARLY), key=EXACTNESS.index)


def seconds_of(segmenter: "Segmenter", shape: tuple[int, int], passes: int = 2) -> float:
    """Least time of an image of a shape, in batches as they come, after a pass to warm up."""
    images = np.zeros((segmenter.batch_size(*shape), *shape, segmenter.n_channels), np.uint8)
    times = []
    for _ in range(1 + passes):
        started = time.perf_counter()
        segmenter.segment(images)
        times.append(time.perf_counter() - started)
    return min(times[1:]) / len(images)


class Agreement(NamedTuple):
    """How far class maps are from a reference.

    Attributes:
        images: Compared.
        agreement: Share of equal pixels over all of them.
        worst_image: Number of the image with the least share.
        worst_agreement: That share.
        worst_class: The class whose Dice coefficient, over the pixels of all images, is least.
        worst_dice: That coefficient; 1 for a class that neither has.
    """

    images: int
    agreement: float
    worst_image: int
    worst_agreement: float
    worst_class: int
    worst_dice: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: int) -> "Agreement":
        """Of class maps and their references, of one shape each. No pairs prove nothing: there is no agreement then."""
        shares, pixels = [], []
        both, either = np.zeros(classes), np.zeros(classes)
        for labels, reference in pairs:
            same = labels == reference
            shares.append(float(same.mean()))
            pixels.append(labels.size)
            both += np.bincount(labels[same], minlength=classes)
            either += np.bincount(labels.reshape(-1), minlength=classes)
            either += np.bincount(reference.reshape(-1), minlength=classes)
        if not shares:
            return cls(0, 0.0, 0, 0.0, 0, 0.0)
        dice = np.where(either > 0, 2 * both / np.maximum(either, 1), 1.0)
        worst = int(np.argmin(shares))
        total = float(np.average(shares, weights=pixels))
        return cls(len(shares), total, worst, shares[worst], int(dice.argmin()), float(dice.min()))


def compared(segmenter: "Segmenter", exact: "Segmenter", images: Sequence[NDArray[np.uint8]]) -> Agreement:
    """How far one segmenter's class maps are from another's; of images that fit into memory.

    Args:
        segmenter: To be judged.
        exact: In fp32.
        images: Pixels (H, W, C); at least one.
    """

    def pair(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        try:
            return segmenter.segment(image[None])[0], exact.segment(image[None])[0]
        except MemoryError:
            return None

    with ThreadPoolExecutor(exact.lanes) as pool:
        pairs = dict(enumerate(pool.map(pair, images)))
    fitted = {number: found for number, found in pairs.items() if found is not None}
    agreement = Agreement.of(fitted.values(), segmenter.classes)
    return agreement._replace(worst_image=list(fitted)[agreement.worst_image]) if fitted else agreement
