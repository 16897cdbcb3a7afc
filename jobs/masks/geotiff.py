"""Masks as tiled TIFF with the georeference and resolution of their image. Holds one band of rows at a time.

Written by tifffile: Pillow writes whole images only, and libvips writes no tags but its own.
`placement` reads the tags of the image in a few small reads, so a file read by ranges is enough; `tiff` writes the
mask.

The image's no-data value is not copied. If it equals the value of a class, programs would show that class as missing.
Odd tags never end an export: an odd resolution is left out, and so is a georeference with an odd tag, since a part of
one may place the mask elsewhere.
"""

import io
import math
import struct
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

TILE = 256
"""Side of a tile in px, and number of rows per band."""

_SHORT, _ASCII, _DOUBLE = 3, 2, 12


class _Form(NamedTuple):
    """How a tag is stored: its type, the least number of values, and a number that theirs is a multiple of."""

    kind: int
    least: int
    multiple: int = 1


_GEOREFERENCE = {
    33550: _Form(_DOUBLE, 3, 3),  # ModelPixelScale
    33922: _Form(_DOUBLE, 6, 6),  # ModelTiepoint
    34264: _Form(_DOUBLE, 16, 16),  # ModelTransformation
    34735: _Form(_SHORT, 4, 4),  # GeoKeyDirectory
    34736: _Form(_DOUBLE, 1),  # GeoDoubleParams
    34737: _Form(_ASCII, 1),  # GeoAsciiParams
    50844: _Form(_DOUBLE, 92, 92),  # RPCCoefficient
}
_ORIENTATION = 274
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_UPRIGHT = 1
_INCH = 2
_UNITS = (1, _INCH, 3)
_CLASSIC_BYTES = 2**31
"""Bytes of pixels that fit into a classic TIFF with 32-bit offsets; larger masks become BigTIFF."""


class Placement(NamedTuple):
    """Tags of a TIFF for the position and size of its pixels.

    Attributes:
        georeference: GeoTIFF tags as stored: code, type, count and value of each.
        resolution: Pixels per unit across and down, as fractions; None if not stated.
        unit: Unit of the resolution: 1 for none, 2 for inch, 3 for centimetre.
    """

    georeference: tuple[tuple[int, int, int, Any], ...] = ()
    resolution: tuple[tuple[int, int], tuple[int, int]] | None = None
    unit: int = _INCH


def placement(file: IO[bytes], height: int, width: int, *, upright: bool = False) -> Placement | None:
    """Read the placement of an image.

    Args:
        file: Open image file. Only header and tags are read.
        height: Height of its mask in px.
        width: Width of its mask in px.
        upright: Whether the mask was turned as the EXIF orientation says.

    Returns:
        The placement; None if the file is no TIFF, states neither georeference nor resolution, or has another grid than
        the mask.

    Raises:
        StorageError: Reading failed.
    """
    if file.read(2) not in (b"II", b"MM"):
        return None
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as opened:
            page: Any = opened.pages[0]
            tags = {tag.code: (tag.code, int(tag.dtype), tag.count, tag.value) for tag in page.tags}
            if (page.imagelength, page.imagewidth) != (height, width):
                return None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error, tifffile.TiffFileError):
        return None  # damaged tags; the pixels may be intact all the same
    if upright and tags.get(_ORIENTATION, (0, 0, 0, _UPRIGHT))[3] != _UPRIGHT:
        return None
    place = tuple(_as_written(tags[code]) for code in _GEOREFERENCE if code in tags)
    if not all(_is_sound(tag) for tag in place):
        place = ()
    across, down = (_fraction(tags.get(code, (0, 0, 0, None))[3]) for code in (_X_RESOLUTION, _Y_RESOLUTION))
    unit = tags[_RESOLUTION_UNIT][3] if _RESOLUTION_UNIT in tags else _INCH
    if across is None or down is None or unit not in _UNITS:
        return Placement(place) if place else None
    return Placement(place, (across, down), int(unit))


def _fraction(stored: Any) -> tuple[int, int] | None:
    """Return a resolution as a fraction; None for one that some programs write and none can read."""
    match stored:
        case (int(above), int(below)) if above > 0 and below > 0:
            return above, below
    return None


def _is_sound(tag: tuple[int, int, int, Any]) -> bool:
    """Return whether a tag of the georeference is stored as "GeoTIFF Format Specification" 1.8.2 says."""
    code, kind, count, value = tag
    form = _GEOREFERENCE[code]
    if kind != form.kind or kind == _ASCII:
        return kind == form.kind
    numbers = np.atleast_1d(np.asarray(value, np.float64))
    return form.least <= count == numbers.size and not count % form.multiple and bool(np.isfinite(numbers).all())


def _as_written(tag: tuple[int, int, int, Any]) -> tuple[int, int, int, Any]:
    code, kind, count, value = tag
    return (code, kind, 0, str(value).encode()) if kind == _ASCII else (code, kind, count, value)


def tiff(bands: Iterable[NDArray[np.uint8]], *, shape: tuple[int, ...], placement: Placement | None) -> bytes:
    """Write a mask as a TIFF file. Equal masks and placements give equal bytes.

    Args:
        bands: Rows from top to bottom, uint8 (rows, W) or (rows, W, 3); `TILE` rows each, the last may have fewer.
        shape: Shape of the mask, (H, W) or (H, W, 3).
        placement: Placement of the image; None if unknown.
    """
    placement = placement or Placement()
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, bigtiff=math.prod(shape) > _CLASSIC_BYTES) as writer:
        writer.write(
            _tiles(bands),
            shape=shape,
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack" if len(shape) == 2 else "rgb",
            metadata=None,
            software=False,
            resolution=placement.resolution,
            resolutionunit=placement.unit if placement.resolution else None,
            extratags=[(*tag, True) for tag in placement.georeference],
        )
    return sink.getvalue()


def _tiles(bands: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    for band in bands:
        for left in range(0, band.shape[1], TILE):
            yield np.ascontiguousarray(band[:, left : left + TILE])
