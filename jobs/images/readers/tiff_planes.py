"""Images of a TIFF file behind one header: stacks by ImageJ, OME and tifffile, whose planes follow one another."""

import math
import re
from typing import Any

from maskfleet.jobs.images.contract import Undecodable

_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")
_SIZES = re.compile(r"\bSize([CTZ])\s*=\s*[\"'](\d{1,9})[\"']")
_SAMPLES = re.compile(r"<(?:\w+:)?Channel\b[^>]*\bSamplesPerPixel\s*=\s*[\"'](\d{1,9})[\"']")


def count(tiff: Any, page: Any) -> int:
    """Return the number of images behind the first header of a file; 1 if each has a header of its own.

    Args:
        tiff: File of tifffile.
        page: Its first page.

    Raises:
        Undecodable: The file states more images than it holds.
    """
    depth = int(page.imagedepth)
    if depth > 1:
        if depth > len(page.dataoffsets) * (page.tiledepth if page.is_tiled else 1):
            raise Undecodable("corrupt", f"the TIFF states {depth} images and lacks their places; upload it again")
        return depth
    if page.is_imagej:
        stated = int((tiff.imagej_metadata or {}).get("images", 1))
    elif page.is_shaped and (shaped := tiff.shaped_metadata):
        stated = math.prod(map(int, shaped[0].get("shape", (1,)))) // max(1, int(page.size))
    elif page.is_ome:
        stated = _of_ome(tiff.ome_metadata or "")
        stated = stated if stated <= _held(tiff, page) else 1  # others may lie in other files
    else:
        return 1
    if stated > 1 and len(tiff.pages) == 1 and stated > (held := _held(tiff, page)):
        raise Undecodable("corrupt", f"the TIFF states {stated} images and holds {held}; upload it again")
    return max(1, stated)


def _held(tiff: Any, page: Any) -> int:
    """Return how many images of this form fit into the file behind the first header."""
    if not page.is_contiguous:
        return 1
    return int((tiff.filehandle.size - page.dataoffsets[0]) // max(1, page.nbytes))


def _of_ome(text: str) -> int:
    """Return the number of planes that OME-XML states for its first image."""
    found = _PIXELS.search(text)
    if found is None:
        return 1
    sizes = {name: int(size) for name, size in _SIZES.findall(found[0])}
    samples = _SAMPLES.search(text, found.end())
    return math.prod(sizes.values()) // max(1, int(samples[1]) if samples else 1)
