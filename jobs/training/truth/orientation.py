"""The grids of a pair: image and mask are turned by one rule, and a pair with different orientation tags is refused.

A photo may have an EXIF or TIFF orientation that its mask has not. Then nothing in the files says whether the mask was
drawn on the pixels as they are stored, or on the picture as viewers show it.
"""

import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.decode import turned
from maskfleet.jobs.images.formats import recognised

CODEC = "maskfleet.jobs.training.truth.orientation:decode"
"""Codec name for `jobs.images.decoders.Decoders`."""

UPRIGHT = 1
"""Orientation of a file that states none."""

Grid = Literal["stored", "upright"]
"""The pixels as stored, or turned as the orientation says."""

_BACK = {6: 8, 8: 6}
"""Orientations that undo another one; every other one undoes itself."""


def decode(data: bytes, *, max_pixels: int, **_: Any) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Read the orientation of an image file, in a decoder process.

    Args:
        data: Bytes of the file.
        max_pixels: Largest accepted number of pixels.

    Returns:
        The orientation, 1 to 8, as one pixel (1, 1, 1), uint8; and the size of that pixel.

    Raises:
        Undecodable: The file is not an image.
    """
    file = io.BytesIO(data)
    found = recognised(file).open(file, max_pixels=max_pixels).orientation()
    return np.array([[[found if found in range(1, 9) else UPRIGHT]]], np.uint8), (1, 1)


def refuse_doubt(*, image: tuple[str, int], mask: tuple[str, int], wanted: Grid, drawn: Grid | None) -> None:
    """Refuse a pair if nothing says on which grid its mask was drawn.

    Args:
        image: URL and orientation of the image.
        mask: URL and orientation of the mask.
        wanted: Grid of the images that the network sees.
        drawn: Grid on which the masks were drawn, as the job says; None if it does not.

    Raises:
        JobError: The orientations differ, and the job says neither `wanted` = "upright" nor `drawn`.
    """
    if drawn is None and wanted == "stored" and image[1] != mask[1]:
        raise JobError(
            f"image {image[0]} has orientation {image[1]} and mask {mask[0]} has {mask[1]}; set "
            "inference.orientation = 'upright', or say how the masks were drawn: finetune.mask_orientation = 'stored' "
            "(on the pixels as stored) or 'upright' (as viewers show them)"
        )


def aligned(
    classes: NDArray[np.uint8], *, image: int, mask: int, wanted: Grid, drawn: Grid | None
) -> NDArray[np.uint8]:
    """Return the classes of a mask on the grid of its image, (H, W), uint8.

    Args:
        classes: Class of each pixel of the mask, as stored, (H, W).
        image: Orientation of the image.
        mask: Orientation of the mask.
        wanted: Grid of the images that the network sees.
        drawn: Grid on which the masks were drawn, as the job says; None if it does not.
    """
    if drawn == "stored":
        return classes if wanted == "stored" else _turned(classes, image)
    if wanted == "upright":
        return _turned(classes, mask)
    return classes if drawn is None else _turned(_turned(classes, mask), _BACK.get(image, image))


def _turned(classes: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation == UPRIGHT:
        return classes
    return np.asarray(turned(Image.fromarray(classes), orientation))
