"""Masks as TIFF that lie where their image lies: in tiles, as rows come, with the image's georeference and resolution.

By tifffile, the extra `geo`: Pillow writes whole images only, and libvips writes no tags but its own. `placement`
reads the input's tags with a few small reads, so that a ranged file serves; `write` writes the mask.

The no-data value stays behind. It is one of the image's pixel values; where it is also a mask's, programs would take
that class for missing.
"""

import importlib
import io
import math
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError

TILE = 256
"""Side of the file's tiles in px; rows come by so many."""

_GEOREFERENCE = {
    33550: "ModelPixelScale",
    33922: "ModelTiepoint",
    34264: "ModelTransformation",
    34735: "GeoKeyDirectory",
    34736: "GeoDoubleParams",
    34737: "GeoAsciiParams",
}
_ORIENTATION = 274
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_UPRIGHT = 1
_INCH = 2
_ASCII = 2
_CLASSIC_BYTES = 2**31
"""Of pixels; more go into a BigTIFF, whose offsets have 64 bits."""


class Placement(NamedTuple):
    """What of a TIFF's tags says where and how large its pixels are.

    Attributes:
        georeference: Tags as they are in the file: code, type, count and value each.
        resolution: Pixels per unit across and down, a fraction each; None where not stated.
        unit: 1 for none, 2 for inch, 3 for centimetre.
    """

    georeference: tuple[tuple[int, int, int, Any], ...] = ()
    resolution: tuple[tuple[int, int], tuple[int, int]] | None = None
    unit: int = _INCH


def placement(file: IO[bytes], height: int, width: int, *, upright: bool = False) -> Placement | None:
    """Where an image lies.

    Args:
        file: Its file; reads the header and the tags alone.
        height: Of its mask, in px.
        width: Likewise.
        upright: Whether the mask was turned as EXIF orientation says.

    Returns:
        None where it is no TIFF, states neither place nor resolution, or its grid is not the mask's.

    Raises:
        JobError: The extra `geo` is missing.
        StorageError: As reading.
    """
    if file.read(2) not in (b"II", b"MM"):
        return None
    tifffile = _tifffile()
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as opened:
            page = opened.pages[0]
            tags = {tag.code: (tag.code, int(tag.dtype), tag.count, tag.value) for tag in page.tags}
            if (page.imagelength, page.imagewidth) != (height, width):
                return None
    except (tifffile.TiffFileError, ValueError, TypeError, KeyError, IndexError, OverflowError):
        return None  # tags that lie; the image itself may well have been read
    if upright and tags.get(_ORIENTATION, (0, 0, 0, _UPRIGHT))[3] != _UPRIGHT:
        return None
    place = tuple(_as_written(tags[code]) for code in _GEOREFERENCE if code in tags)
    if _X_RESOLUTION not in tags or _Y_RESOLUTION not in tags:
        return Placement(place) if place else None
    unit = int(tags[_RESOLUTION_UNIT][3]) if _RESOLUTION_UNIT in tags else _INCH
    return Placement(place, (tags[_X_RESOLUTION][3], tags[_Y_RESOLUTION][3]), unit)


def _as_written(tag: tuple[int, int, int, Any]) -> tuple[int, int, int, Any]:
    code, kind, count, value = tag
    return (code, kind, 0, str(value).encode()) if kind == _ASCII else (code, kind, count, value)


def write(file: IO[bytes], bands: Iterable[NDArray[np.uint8]], shape: tuple[int, ...], place: Placement | None) -> None:
    """Write a mask. Holds one band at a time; equal masks and places give equal bytes.

    Args:
        file: Open for writing, seekable.
        bands: `TILE` rows each but the last, from top to bottom: (rows, W), or (rows, W, 3).
        shape: Of the whole, (H, W) or (H, W, 3).
        place: The image's.

    Raises:
        JobError: The extra `geo` is missing.
    """
    place = place or Placement()
    with _tifffile().TiffWriter(file, bigtiff=math.prod(shape) > _CLASSIC_BYTES) as writer:
        writer.write(
            _tiles(bands),
            shape=shape,
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack" if len(shape) == 2 else "rgb",
            metadata=None,
            software=False,
            resolution=place.resolution,
            resolutionunit=place.unit if place.resolution else None,
            extratags=[(*tag, True) for tag in place.georeference],
        )


def tiff(bands: Iterable[NDArray[np.uint8]], shape: tuple[int, ...], place: Placement | None) -> bytes:
    """The same as a file's bytes."""
    sink = io.BytesIO()
    write(sink, bands, shape, place)
    return sink.getvalue()


def _tiles(bands: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    for band in bands:
        for left in range(0, band.shape[1], TILE):
            yield np.ascontiguousarray(band[:, left : left + TILE])


def _tifffile() -> Any:
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        raise JobError("GeoTIFF needs tifffile: pip install 'maskfleet[geo]'") from error
