"""Decoding of one image to the pixels seen by the network. Runs in decoding processes; knows no storage.

Formats lie in `jobs.images.formats`, conversions of channels and bit depths in `jobs.images.channels`. EXIF orientation
is applied only if the job says so; then the mask lies on the upright grid, else on the stored one.
"""

import io
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.channels import Wanted, is_8_bit, numbers_of, planes_of
from maskfleet.jobs.images.contract import STREAM, STREAM_PIXELS, Bands, Undecodable
from maskfleet.jobs.images.formats import Format, recognised
from maskfleet.unet.pixels.normalization import Levels, Normalization
from maskfleet.unet.pixels.numbers import levels_of

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From the stored grid to the upright one, by EXIF orientation."""


def decode(
    data: bytes | IO[bytes],
    *,
    channels: int,
    scale: float = 1.0,
    max_pixels: int = STREAM_PIXELS,
    upright: bool = False,
    min_side: int = 1,
    bands: tuple[int, ...] = (),
    normalize: Normalization | None = None,
    buffer: NDArray[np.uint8] | None = None,
    page: int = 0,
) -> Bands:
    """Decode an image.

    Args:
        data: Bytes of the file, or the file itself, of which a page reads a part.
        channels: Input channels of the network.
        scale: Resize factor of both sides, truncated to whole pixels; Pillow's bicubic filter, in 8 bits for 8 bits and
            in floats for others.
        max_pixels: Pixels of the largest accepted image; checked in the header.
        upright: Whether the image is turned as its EXIF orientation says.
        min_side: Smallest side accepted by the network, in px, after scaling.
        bands: Bands that the network takes, counted from 1; empty for those that `jobs.images.channels` says.
        normalize: Declared normalisation.
        buffer: Flat memory for the pixels, used from its beginning if they fit and the decoder can write there.
        page: Number of the page to decode, counted from 1; 0 for the only image of a file.

    Returns:
        The bands after scaling, the height and width of the mask in px, and the levels of the whole stored image.

    Raises:
        Undecodable: The bytes give no image; the error class names the reason.
    """
    if not data:
        raise Undecodable("empty", "the file is empty; upload it again")
    try:
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        format_ = recognised(file)
        image = format_.open(file, max_pixels=max_pixels, page=page)
        if image.width * image.height > STREAM_PIXELS:
            raise _not_whole(format_, image.width * image.height)
        plain = channels == 3 and scale == 1 and not (upright or bands or normalize)
        plain = plain and min(image.width, image.height) >= min_side
        if plain and isinstance(data, bytes) and (pixels := image.rgb(data, buffer)) is not None:
            return Bands(pixels, (image.height, image.width))
        stored, wanted = image.pixels(), Wanted(channels, image.colours, image.maximum, bands)
        turn = image.orientation() if upright else 1
        if is_8_bit(stored) and (normalize is None or image.nodata is None):
            planes = [turned(plane, turn) for plane in planes_of(stored, wanted)]
            levels = None if normalize is None else levels_of(normalize, channels, lambda: [stacked(planes)])
            return Bands(_scaled(planes, channels, scale=scale, min_side=min_side), planes[0].size[::-1], levels)
        numbers, levels = _numbers(stored, wanted, image.nodata, normalize)
        numbers = turned_numbers(numbers, turn)
        resized = _rescaled(numbers, levels, scale=scale, min_side=min_side)
        return Bands(resized, (numbers.shape[0], numbers.shape[1]), levels)
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # hostile bytes make image libraries raise nearly anything
        raise corrupt(error) from error


def _numbers(
    stored: Image.Image | NDArray[Any], wanted: Wanted, nodata: float | None, normalize: Normalization | None
) -> tuple[NDArray[Any], Levels]:
    numbers, white = numbers_of(stored, wanted, nodata=nodata, declared=normalize is not None)
    if normalize is None:
        return numbers, Levels.of_white(white, wanted.channels)
    return numbers, levels_of(normalize, wanted.channels, lambda: [numbers])


def corrupt(error: Exception) -> Undecodable:
    """Return the refusal of an image after an error of an image library."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Undecodable("corrupt", f"the image does not decode ({lines[0]}); upload it again")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image upright.

    Args:
        image: Image on the stored grid.
        orientation: EXIF orientation, 1 to 8; others leave the image as it is.
    """
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def turned_numbers(numbers: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an array (H, W, C) upright; see `turned`."""
    turns: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
        2: np.fliplr,
        3: lambda array: np.rot90(array, 2),
        4: np.flipud,
        5: lambda array: array.swapaxes(0, 1),
        6: lambda array: np.rot90(array, 3),
        7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    return turns[orientation](numbers) if orientation in turns else numbers


def stacked(planes: list[Image.Image]) -> NDArray[Any]:
    """Return planes as an array (H, W, C)."""
    pixels = np.asarray(planes[0]) if len(planes) == 1 else np.dstack([np.asarray(plane) for plane in planes])
    return np.atleast_3d(pixels)


def _rescaled(numbers: NDArray[Any], levels: Levels, *, scale: float, min_side: int) -> NDArray[Any]:
    """Resize each band in floats. No data counts as the number seen as 0, and is no data again afterwards."""
    height, width = numbers.shape[:2]
    size = _size(width, height, scale=scale, min_side=min_side)
    if size == (width, height):
        return numbers
    resized = np.empty((size[1], size[0], numbers.shape[2]), np.float32)
    for band, offset in enumerate(levels.offset):
        plane = numbers[..., band].astype(np.float32)
        lacking = np.isnan(plane)
        found = Image.fromarray(np.where(lacking, np.float32(offset), plane)).resize(size, Image.Resampling.BICUBIC)
        resized[..., band] = np.asarray(found)
        if lacking.any():
            nearest = Image.fromarray(lacking.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
            resized[..., band][np.asarray(nearest) > 0] = np.nan
    return resized


def _not_whole(format_: Format, pixels: int) -> Undecodable:
    if format_.in_rows:
        return Undecodable(STREAM, "too large to decode in one piece")
    return not_in_rows(format_, f"{pixels} px")


def not_in_rows(format_: Format, size: str) -> Undecodable:
    """Return the refusal of a large image in a format without access by rows."""
    return Undecodable("unsupported", f"a {format_.name} file of {size} cannot be read in rows; store TIFF or PNG")


def _scaled(planes: list[Image.Image], channels: int, *, scale: float, min_side: int) -> NDArray[np.uint8]:
    width, height = planes[0].size
    size = _size(width, height, scale=scale, min_side=min_side)
    if size != (width, height):
        planes = [plane.resize(size, Image.Resampling.BICUBIC) for plane in planes]
    return stacked(planes).reshape(size[1], size[0], channels)


def _size(width: int, height: int, *, scale: float, min_side: int) -> tuple[int, int]:
    size = int(scale * width), int(scale * height)
    if min(size) < min_side:
        raise too_small(width, height, min_side=min_side, scale=scale)
    return size


def too_small(width: int, height: int, *, min_side: int, scale: float = 1.0) -> Undecodable:
    """Return the refusal of an image below the network's smallest side."""
    scaled = "" if scale == 1 else f" scaled by {scale:g}"
    return Undecodable("too_small", f"{width}×{height} px{scaled}; the network needs {min_side} px a side")
