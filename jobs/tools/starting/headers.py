"""The program of an isolated process: tells what kind of image a file holds. Started by `look`, without credentials."""

import importlib
import os
from typing import Any

import numpy as np
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import FORMATS, recognised
from maskfleet.jobs.isolation.child import Serve, answer_each, limit_time

_MOST_PIXELS = 2**26
"""Larger images are not decoded; their bands and bits stay unknown."""

_SECONDS = 20

_MODES = {
    "1": (1, "1"), "L": (1, "8"), "LA": (2, "8"), "F": (1, "float"), "I": (1, "32"), "P": (3, "8"), "PA": (4, "8"),
    "RGB": (3, "8"), "RGBA": (4, "8"), "RGBX": (4, "8"), "CMYK": (4, "8"), "YCbCr": (3, "8"), "LAB": (3, "8"),
}  # fmt: skip
"""Bands and bits of Pillow's modes."""


def program(settings: dict[str, Any]) -> Serve:
    """Load every reader; return the function that answers requests, each the number of an inherited descriptor."""
    for format_ in FORMATS:
        importlib.import_module(format_.reader)
    Image.preinit()
    return answer_each(_answer)


def _answer(descriptor: int) -> dict[str, Any]:
    """Return what the header and pixels of a file say, or the problem."""
    limit_time(_SECONDS)
    try:
        return _kind(descriptor)
    except Undecodable as error:
        return {"problem": str(error)}
    except Exception as error:  # a foreign library met foreign bytes
        return {"problem": f"it cannot be read ({type(error).__name__})"}


def _kind(descriptor: int) -> dict[str, Any]:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        format_ = recognised(file)
        file.seek(0)
        image = importlib.import_module(format_.reader).read_header(file)
        found = {"format": format_.name, "width": image.width, "height": image.height, "pages": image.frames()}
        if found["pages"] == 1 and image.width * image.height <= _MOST_PIXELS:
            found["bands"], found["bits"] = _bands_and_bits(image.pixels())
        return found


def _bands_and_bits(pixels: Any) -> tuple[int, str]:
    if isinstance(pixels, Image.Image):
        return (1, "16") if pixels.mode.startswith("I;16") else _MODES.get(pixels.mode, (len(pixels.getbands()), "8"))
    bits = {"f": "float", "b": "1"}.get(pixels.dtype.kind, str(8 * pixels.dtype.itemsize))
    return int(np.atleast_3d(pixels).shape[2]), bits
