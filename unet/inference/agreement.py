"""Agreement of one segmenter's class maps with another's, such as reduced precision's with fp32's."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from maskfleet.unet.inference.segmenter import Segmenter


class Agreement(NamedTuple):
    """Agreement of class maps with a reference.

    Attributes:
        images: Number of images compared.
        agreement: Share of equal pixels over all images.
        worst_image: Number of the image with the smallest share.
        worst_agreement: The smallest share.
        worst_class: Class with the smallest Dice coefficient over the pixels of all images.
        worst_dice: The smallest Dice coefficient; 1 for a class absent from both.
    """

    images: int
    agreement: float
    worst_image: int
    worst_agreement: float
    worst_class: int
    worst_dice: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: int) -> Self:
        """Compare pairs of class map and reference, of one shape each. Without pairs the agreement is 0."""
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


def compared(segmenter: Segmenter, exact: Segmenter, images: Sequence[NDArray[np.uint8]]) -> Agreement:
    """Compare two segmenters' class maps of the images that fit into memory.

    Args:
        segmenter: The segmenter under test.
        exact: The reference, in fp32.
        images: Pixels (H, W, C) of at least one image.
    """

    def pair(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        try:
            return segmenter.segment(image[None])[0], exact.segment(image[None])[0]
        except MemoryError:
            return None

    with ThreadPoolExecutor(exact.concurrency) as pool:
        pairs = dict(enumerate(pool.map(pair, images)))
    fitted = {number: found for number, found in pairs.items() if found is not None}
    agreement = Agreement.of(fitted.values(), segmenter.classes)
    return agreement._replace(worst_image=list(fitted)[agreement.worst_image]) if fitted else agreement
