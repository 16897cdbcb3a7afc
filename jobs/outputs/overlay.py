"""Pictures for people: an image as RGB, and a mask drawn over it with a translucent fill and a contour.

Knows nothing of storage and rows. The report, `maskfleet show` and notebooks draw with it. `decode` runs in the
confined decoding processes.
"""

import colorsys
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.contract import STREAM_PIXELS, Undecodable
from maskfleet.jobs.images.decode import corrupt, turned
from maskfleet.jobs.images.decode import decode as decode_as_network
from maskfleet.jobs.images.formats import recognised

Colour = tuple[int, int, int]

_COLOURS: tuple[Colour, ...] = (
    (255, 176, 0), (0, 170, 255), (255, 70, 120), (0, 210, 130), (170, 110, 255),
    (255, 120, 30), (90, 220, 230), (240, 110, 220), (190, 220, 60),
)  # fmt: skip
"""Colours of the classes 1 to 9: bright on dark fluorescence as on stained tissue, and told apart by most eyes."""

_GOLDEN = 0.618034
_GROUND = (24, 26, 30)
_LIMITS = (1.0, 99.0)
_SAMPLES = 1_000_000
_BRIGHT, _DARK, _WHITE, _MOST_BRIGHTER = 99.5, 96, 224, 16.0
"""An 8-bit image is dark if this percentile lies below the first number; it is brightened to the second, at most by the
factor given last."""

_ROWS = 512
_LINE = 600
"""Side of a picture in px for each pixel of a contour's width."""

CODEC = "maskfleet.jobs.outputs.overlay:decode"
"""The function `decode`, as decoding processes name it."""

OPACITY = 0.35
"""Default opacity of the fill."""


def class_colours(values: Sequence[Any]) -> list[Colour]:
    """Return the colour of each class: the job's where its mask values are RGB, else bright ones of ours.

    Args:
        values: Pixel value of each class in the masks: integers, or RGB triples.
    """
    if values and not isinstance(values[0], int):
        return [(int(red), int(green), int(blue)) for red, green, blue in values]
    return [_GROUND, *(_colour(number) for number in range(1, len(values)))]


def _colour(number: int) -> Colour:
    if number <= len(_COLOURS):
        return _COLOURS[number - 1]
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.65, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: NDArray[Any] | None, mask: NDArray[np.uint8] | None, colours: Sequence[Colour], *, size: int | None = None,
    opacity: float = OPACITY,
) -> Image.Image:  # fmt: skip
    """Draw a mask over its image. Fills are translucent, contours opaque; class 0 is not drawn.

    Args:
        image: Pixels (H, W) or (H, W, C) of any type, see `displayed`; None draws the mask alone on a dark ground.
        mask: Class map (H, W), uint8; None draws the image alone.
        colours: Colour of each class, see `class_colours`.
        size: Longest side of the picture in px. Larger images are averaged, smaller ones enlarged in whole steps. None
            keeps the size of the image.
        opacity: Opacity of the fill, 0 … 1. With 0, the contours remain.

    Returns:
        An RGB picture.

    Raises:
        ValueError: Neither an image nor a mask is given, or the opacity is out of range.
        JobError: Image and mask differ in shape.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie between 0 and 1, got {opacity}")
    if image is None and mask is None:
        raise ValueError("there is nothing to draw: neither an image nor a mask")
    if image is not None and mask is not None and image.shape[:2] != mask.shape:
        raise JobError(f"the mask has the shape {mask.shape}, but its image {image.shape[:2]}; run the job again")
    shape = image.shape[:2] if image is not None else mask.shape if mask is not None else (0, 0)
    picture = None if image is None else shrunk(_bands(image), shape, size)
    labels = None if mask is None else shrunk_mask(_bands(mask), shape, size)
    return drawn(picture, labels, colours, size=size, opacity=opacity)


def drawn(
    image: NDArray[Any] | None, labels: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None, colours: Sequence[Colour],
    *, size: int | None, opacity: float = OPACITY,
) -> Image.Image:  # fmt: skip
    """Draw what `shrunk` and `shrunk_mask` returned. See `overlay`.

    Args:
        image: Pixels (h, w) or (h, w, C), or None.
        labels: Classes and their coverage, both (h, w), or None. At least one of the two is given.
        colours: Colour of each class.
        size: Longest side of the picture in px, or None.
        opacity: Opacity of the fill.
    """
    shape = labels[0].shape if labels is not None else image.shape[:2] if image is not None else (1, 1)
    target = _target(shape, size)
    picture = np.full((*shape, 3), _GROUND, np.uint8) if image is None else displayed(image)
    enlarged = target[0] > shape[0]
    pixels = np.array(_resized(picture, target, Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX))
    if labels is not None:
        classes, coverage = (_resized(plane, target, Image.Resampling.NEAREST) for plane in labels)
        _paint(pixels, np.asarray(classes), np.asarray(coverage), colours, opacity=1.0 if image is None else opacity)
    return Image.fromarray(pixels)


def displayed(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image as RGB for display.

    8-bit images of one or three channels keep their values; dark ones are brightened, all channels alike. Other types,
    and other numbers of channels, are stretched from their 1st to their 99th percentile, channel by channel. Of more
    than three channels the first three are shown.

    Args:
        image: Pixels (H, W) or (H, W, C).

    Returns:
        Pixels (H, W, 3), uint8; a copy unless the image is RGB already.
    """
    channels = np.atleast_3d(image)
    stretch = channels.dtype != np.uint8 or channels.shape[2] not in (1, 3)
    channels = channels[..., :3]
    if channels.shape[2] == 2:
        channels = np.concatenate((channels, np.zeros_like(channels[..., :1])), axis=2)
    if stretch:
        planes = [_stretched(channels[..., number]) for number in range(channels.shape[2])]
        channels = np.stack(planes, axis=2)
    else:
        channels = _brightened(channels)
    return np.repeat(channels, 3, axis=2) if channels.shape[2] == 1 else channels


def _brightened(channels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    bright = float(np.percentile(_sampled(channels), _BRIGHT))
    if bright >= _DARK:
        return channels
    factor = min(_MOST_BRIGHTER, _WHITE / max(bright, 1.0))
    brighter: NDArray[np.uint8] = np.minimum(np.arange(256) * factor, 255).astype(np.uint8)
    return np.take(brighter, channels)


def _sampled(pixels: NDArray[Any]) -> NDArray[Any]:
    step = max(1, int(np.sqrt(pixels.size / _SAMPLES)))
    return pixels[::step, ::step]


def _stretched(plane: NDArray[Any]) -> NDArray[np.uint8]:
    values = _sampled(plane).astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, _LIMITS) if values.size else (0.0, 0.0)
    if low == high:
        low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    scale = 255 / (high - low) if high > low else 0.0
    stretched = np.nan_to_num((plane.astype(np.float32) - low) * scale, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)


def decode(
    data: bytes | IO[bytes], *, max_pixels: int = STREAM_PIXELS, upright: bool = False, page: int = 0, **options: Any
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode an image for display, whatever its bits and bands: a codec of `jobs.images.decoders.Decoders`.

    Args:
        data: As `jobs.images.decode.decode` takes it.
        max_pixels: Likewise.
        upright: Likewise.
        page: Likewise.
        options: The other arguments of that function.

    Returns:
        Pixels (H, W, 3), uint8, see `displayed`; and height and width in px.

    Raises:
        Undecodable: The bytes give no image.
    """
    try:
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        image = recognised(file).open(file, max_pixels=max_pixels, page=page)
        if image.width * image.height <= STREAM_PIXELS:
            pixels = image.pixels()
            numbers = np.atleast_3d(np.asarray(pixels))
            numbers = numbers[..., : image.colours] if image.colours in (1, 3) else numbers
            bands = not isinstance(pixels, Image.Image) and numbers.shape[2] not in (1, 3)
            if bands or numbers.dtype not in (np.uint8, np.bool_):
                shown = Image.fromarray(displayed(numbers))
                shown = turned(shown, image.orientation()) if upright else shown
                return np.asarray(shown), shown.size[::-1]
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # hostile bytes make image libraries raise nearly anything
        raise corrupt(error) from error
    file.seek(0)
    pixels, size, _ = decode_as_network(data, max_pixels=max_pixels, upright=upright, page=page, **options)
    return pixels, size


def factor_of(shape: tuple[int, int], size: int | None) -> int:
    """Return the whole number of pixels averaged into one, per side, on the way to a picture of this size."""
    return max(1, max(shape) // size) if size else 1


def shrunk(bands: Iterable[NDArray[Any]], shape: tuple[int, int], size: int | None) -> NDArray[Any]:
    """Average an image in blocks, band by band: the image itself is never held.

    Args:
        bands: Rows of the image from top to bottom, (rows, W) or (rows, W, C).
        shape: Height and width of the image in px.
        size: Longest side of the picture in px; None averages nothing.

    Returns:
        Pixels (h, w) or (h, w, C): uint8 for uint8, else float32.
    """
    factor = factor_of(shape, size)
    parts = [_averaged(band, factor) if factor > 1 else band.copy() for band in _regrouped(bands, factor)]
    return np.concatenate(parts)


def _averaged(band: NDArray[Any], factor: int) -> NDArray[Any]:
    means: NDArray[Any] = _blocks(band, factor).mean(axis=(1, 3), dtype=np.float32)
    return np.rint(means).astype(np.uint8) if band.dtype == np.uint8 else means


def shrunk_mask(
    bands: Iterable[NDArray[np.uint8]], shape: tuple[int, int], size: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reduce a class map in blocks, band by band.

    Lines of one pixel stay visible: a block is background only if less than half a line through it is of other classes.

    Args:
        bands: Rows of the class map from top to bottom, (rows, W), uint8.
        shape: Height and width of the class map in px.
        size: Longest side of the picture in px; None reduces nothing.

    Returns:
        The most frequent class of each block, and the share of the block in classes other than 0, as 0 … 255; both
        (h, w), uint8.
    """
    factor = factor_of(shape, size)
    parts = [_reduced(band, factor) for band in _regrouped(bands, factor)]
    return np.concatenate([classes for classes, _ in parts]), np.concatenate([coverage for _, coverage in parts])


def _reduced(band: NDArray[np.uint8], factor: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if factor == 1:
        return band.copy(), np.where(band > 0, np.uint8(255), np.uint8(0))
    blocks = _blocks(band, factor)
    covered = np.count_nonzero(blocks, axis=(1, 3))
    classes, most = np.zeros_like(covered, np.uint8), np.zeros_like(covered)
    for number in np.flatnonzero(np.bincount(band.ravel(), minlength=256)[1:]) + 1:
        pixels = np.count_nonzero(blocks == number, axis=(1, 3))
        classes[pixels > most] = number
        most = np.maximum(most, pixels)
    classes[2 * covered < factor] = 0
    return classes, np.rint(covered * (255 / factor**2)).astype(np.uint8)


def _blocks(band: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return a band as blocks (h, factor, w, factor, …). The last ones are filled up by repeating the edge."""
    rows, columns = (-length % factor for length in band.shape[:2])
    if rows or columns:
        band = np.pad(band, [(0, rows), (0, columns)] + [(0, 0)] * (band.ndim - 2), mode="edge")
    height, width = (length // factor for length in band.shape[:2])
    return band.reshape(height, factor, width, factor, *band.shape[2:])


def _bands(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    yield from (array[top : top + _ROWS] for top in range(0, len(array), _ROWS))


def _regrouped(bands: Iterable[NDArray[Any]], factor: int) -> Iterator[NDArray[Any]]:
    """Yield the same rows in bands of a multiple of `factor` rows, except for the last."""
    kept: NDArray[Any] | None = None
    for band in bands:
        joined = band if kept is None or not len(kept) else np.concatenate((kept, band))
        whole = len(joined) - len(joined) % factor
        if whole:
            yield joined[:whole]
        kept = joined[whole:].copy()
    if kept is not None and len(kept):
        yield kept


def _target(shape: tuple[int, ...], size: int | None) -> tuple[int, int]:
    """Return height and width of the picture of a (reduced) image."""
    height, width = shape
    longest = max(height, width)
    if size is None:
        return height, width
    if longest <= size:
        return height * (size // longest), width * (size // longest)
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def _resized(array: NDArray[np.uint8], shape: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    picture = Image.fromarray(array)
    return picture if array.shape[:2] == shape else picture.resize(shape[::-1], filter_)


def _paint(
    pixels: NDArray[np.uint8], classes: NDArray[np.uint8], coverage: NDArray[np.uint8], colours: Sequence[Colour],
    *, opacity: float,
) -> None:  # fmt: skip
    """Paint fills and contours into an RGB image, a few rows at a time."""
    table = np.zeros((256, 3), np.float32)
    table[: len(colours)] = colours
    width = max(1, round(max(classes.shape) / _LINE))
    for top in range(0, len(pixels), _ROWS):
        stop = min(top + _ROWS, len(pixels))
        above, below = max(0, top - width), min(len(pixels), stop + width)
        contour = _contour(classes[above:below], width)[top - above : stop - above]
        band, numbers = pixels[top:stop], classes[top:stop]
        alpha = np.where(contour, 1.0, coverage[top:stop] * np.float32(opacity / 255)).astype(np.float32)
        alpha[numbers == 0] = 0
        inside = alpha > 0
        weight = alpha[inside][:, None]
        band[inside] = np.rint((1 - weight) * band[inside] + weight * table[numbers[inside]])


def _contour(classes: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Return the pixels of each class within `width` px of another class; the picture's own edge is no contour."""
    edge = np.zeros(classes.shape, np.bool_)
    for step in range(1, width + 1):
        edge[step:] |= classes[step:] != classes[:-step]
        edge[:-step] |= classes[:-step] != classes[step:]
        edge[:, step:] |= classes[:, step:] != classes[:, :-step]
        edge[:, :-step] |= classes[:, :-step] != classes[:, step:]
    return edge
