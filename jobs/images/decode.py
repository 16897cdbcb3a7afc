"""Image bytes to the pixels that the network sees. Runs in decoding processes (`decoders`); knows no storage.

What a file becomes, by Pillow's mode, for a network of three channels, of one, or of n others:

| mode                        | three channels                   | one channel                       | n channels |
|-----------------------------|----------------------------------|-----------------------------------|------------|
| 1 (bilevel)                 | 0 or 255, three times            | 0 or 255                          | refused    |
| L                           | the grey, three times            | as stored                         | refused    |
| LA                          | alpha dropped, then as L         | alpha dropped                     | 2: as stored |
| I;16 (16-bit grey)          | round(v · 255 / 65535), as L     | round(v · 255 / 65535)            | refused    |
| F (32-bit float) in [0, 1]  | round(v · 255), as L             | round(v · 255)                    | refused    |
| F beyond, I (32-bit)        | refused: no range is stated      | refused                           | refused    |
| P, PA (palette)             | the palette's colours            | their luma                        | refused    |
| RGB                         | as stored                        | luma, 0.299 R + 0.587 G + 0.114 B | refused    |
| RGBA, RGBX                  | alpha dropped, colours as stored | alpha dropped, then luma          | 4: as stored |
| CMYK                        | Pillow's conversion, no profile  | that, then luma                   | 4: as stored |
| YCbCr, LAB, HSV             | Pillow's conversion, no profile  | that, then luma                   | refused    |
| .npy of (H, W)              | as L                             | as L                              | refused    |
| .npy of (H, W, C)           | C = 1 as L, C = 3 as RGB         | C = 1 as L, C = 3 as RGB          | C: as stored |

An array's bool is 0 or 255, its uint8 as stored, its uint16 and floats as I;16 and F. 16-bit colour PNG
and TIFF reach the network by their high byte. Nothing is clipped. EXIF orientation is applied only where the
job says so; the mask's grid is then the upright one, else the stored one. ICC profiles are left alone. A
file of several frames or pages is refused rather than cut down to its first; a TIFF's smaller copies of its first
page and its transparency mask are no pages.
"""

import io
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
"""The only decoders that are ever tried, by content, whatever the name says."""

MIN_SIDE = 16
"""Of what reaches the network, in px: four halvings."""

STREAM_PIXELS = 89_478_485
"""Larger images are never in memory whole, but read in rows (`jobs.images.streams`). Pillow's own warning limit."""

STREAM = "stream"
"""Error class of an image that is to be read in rows."""

_ARRAY = b"\x93NUMPY"
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""From upright to stored, by EXIF orientation."""

_BIGTIFF = 43
_SUBFILE_TYPE = 254
_OF_ANOTHER = 0b101
"""Bits of a TIFF page that is another's smaller copy (as cloud-optimised GeoTIFFs have them) or transparency mask."""

_AS_STORED = {"LA": 2, "RGBA": 4, "RGBX": 4, "CMYK": 4}


class Undecodable(Exception):
    """An image cannot be had from these bytes.

    Attributes:
        error_class: `empty`, `unidentified`, `corrupt`, `unsupported`, `too_large`, `too_small`, `memory`, or `STREAM`.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def decode(
    data: bytes,
    *,
    channels: int,
    scale: float = 1.0,
    max_pixels: int = STREAM_PIXELS,
    upright: bool = False,
    room: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The pixels of an image.

    Args:
        data: The file's bytes.
        channels: What the network takes.
        scale: Resize both sides by this, truncated to whole pixels, with Pillow's bicubic filter.
        max_pixels: Larger images are refused, from their header.
        upright: Turn the image as its EXIF orientation says.
        room: Memory, flat, that the pixels may lie in from its beginning, where they fit and nothing is lost by it.

    Returns:
        Pixels (H, W, channels) after scaling; and the height and width of the mask's grid.

    Raises:
        Undecodable: With a named reason.
    """
    if not data:
        raise Undecodable("empty", "the file is empty; upload it again")
    try:
        planes = _array_planes(data, channels, max_pixels) if data.startswith(_ARRAY) else None
        if planes is None:
            image = opened(io.BytesIO(data), max_pixels)
            if image.width * image.height > STREAM_PIXELS:
                raise Undecodable(STREAM, "larger than what is decoded whole")
            if channels == 3 and scale == 1 and not upright and (pixels := _colour_jpeg(image, data, room)) is not None:
                return pixels, pixels.shape[:2]
            planes = as_seen(_loaded(image, upright), channels)
        width, height = planes[0].size
        size = int(scale * width), int(scale * height)
        if min(size) < MIN_SIDE:
            raise Undecodable("too_small", f"{_size(width, height, scale)}; the network needs {MIN_SIDE} px a side")
        if size != (width, height):
            planes = [plane.resize(size, Image.Resampling.BICUBIC) for plane in planes]
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise Undecodable("corrupt", f"the image does not decode ({_first_line(error)}); upload it again") from error
    pixels = np.asarray(planes[0]) if len(planes) == 1 else np.dstack([np.asarray(plane) for plane in planes])
    return pixels.reshape(size[1], size[0], channels), (height, width)


def opened(file: Any, max_pixels: int) -> Image.Image:
    """An image whose header is read, from a binary file.

    Raises:
        Undecodable: It is none of `FORMATS`, too large, or holds several frames.
    """
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            frames = _pages(file) if image.format == "TIFF" else getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        file.seek(0)
        raise Undecodable(
            "unidentified", f"not a {', '.join(FORMATS)} image or .npy array but {_looks_like(file.read(256))}"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(pixels[0] if pixels else "too many", max_pixels) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before
    # A camera's MPO is a JPEG with previews behind it; the first picture is the picture.
    if frames > 1 and image.format != "MPO":
        raise Undecodable("unsupported", f"{frames} frames or pages in one file; split it into single images")
    return image


def _colour_jpeg(image: Image.Image, data: bytes, room: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """Pixels (H, W, 3) of a colour JPEG by the extra `fast`, equal to Pillow's; None where it does not apply.

    Both ask libjpeg-turbo for the same, but here nothing is copied on the way. What is not a whole, clean file is left
    to Pillow, so that one program alone says what is an image.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode != "RGB" or min(image.size) < MIN_SIDE:
        return None
    size = 3 * image.width * image.height
    place = room[:size] if room is not None and room.size >= size else None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, strict=True, buffer=place
        )
    except ValueError:
        return None
    return pixels


def _pages(file: Any) -> int:
    """Of a TIFF, the first page and those that are images of their own: not its smaller copies and its mask."""
    before = file.tell()
    file.seek(0)
    header = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header + (file.read(8) if header[2] == _BIGTIFF else b""))
    places: list[int] = []
    found = 0
    while tags.next and tags.next not in places:
        places.append(tags.next)
        file.seek(tags.next)
        tags.load(file)
        found += not found or not tags.get(_SUBFILE_TYPE, 0) & _OF_ANOTHER
    file.seek(before)
    return found


def _loaded(image: Image.Image, upright: bool) -> Image.Image:
    if upright:
        return ImageOps.exif_transpose(image)
    # Of all formats Pillow turns TIFF alone by itself.
    back = _BACK.get(image.getexif().get(ExifTags.Base.Orientation, 1)) if image.format == "TIFF" else None
    image.load()
    return image if back is None else image.transpose(back)


def as_seen(image: Image.Image, channels: int) -> list[Image.Image]:
    """An image as the network sees it: of mode L or RGB, or one image of mode L per channel.

    Raises:
        Undecodable: It has no such channels, or no stated range.
    """
    if channels not in (1, 3):
        if _AS_STORED.get(image.mode) != channels:
            raise Undecodable(
                "unsupported", f"{image.mode} images have no {channels} channels; use other weights, or .npy arrays"
            )
        return list(image.split())
    if image.mode.startswith("I;16"):
        image = Image.fromarray(narrowed(np.asarray(image)))
    elif image.mode == "F":
        image = Image.fromarray(from_unit(np.asarray(image)))
    elif image.mode == "I":
        raise Undecodable("unsupported", "32-bit integers (mode I) state no range; store 8 or 16 bits")
    elif image.mode in ("LA", "La"):
        image = image.getchannel("L")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return [image if image.mode == mode else image.convert(mode)]  # `convert` copies even what is right already


def narrowed(wide: NDArray[Any]) -> NDArray[np.uint8]:
    """16 bits as 8: round(v · 255 / 65535)."""
    return ((wide.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def from_unit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats in [0, 1] as 8 bits: round(v · 255).

    Raises:
        Undecodable: A value lies beyond, or is none.
    """
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise Undecodable(
            "unsupported",
            f"floating-point pixels must lie in [0, 1], got {values.min():g} … {values.max():g}; scale them, or store "
            "8 or 16 bits",
        )
    return np.rint(values * 255.0).astype(np.uint8)


def _array_planes(data: bytes, channels: int, max_pixels: int) -> list[Image.Image]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim not in (2, 3) or not array.size:
        raise Undecodable("unsupported", f"an array of shape {array.shape}; an image has (H, W) or (H, W, C)")
    pixels = array.shape[0] * array.shape[1]
    if pixels > max_pixels:
        raise _too_large(str(pixels), max_pixels)
    if pixels > STREAM_PIXELS:
        raise Undecodable("unsupported", f"an array of {pixels} px cannot be read in rows; store TIFF or PNG")
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = narrowed(array)
    elif array.dtype.kind == "f":
        array = from_unit(array)
    elif array.dtype != np.uint8:
        raise Undecodable(
            "unsupported", f"an array of {array.dtype} states no range; store uint8, uint16, or floats in [0, 1]"
        )
    stored = 1 if array.ndim == 2 else array.shape[2]
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(np.atleast_3d(array), 2, 0)]
    if channels not in (1, 3) and stored == channels:
        return planes
    if channels in (1, 3) and stored in (1, 3):
        return as_seen(planes[0] if stored == 1 else Image.merge("RGB", planes), channels)
    raise Undecodable("unsupported", f"an array of {stored} channels; the network takes {channels}, use other weights")


def _too_large(count: str, max_pixels: int) -> Undecodable:
    return Undecodable(
        "too_large", f"{count} pixels and run.max_image_pixels is {max_pixels}; raise it if the image is genuine"
    )


def _size(width: int, height: int, scale: float) -> str:
    return f"{width}×{height} px" if scale == 1 else f"{width}×{height} px scaled by {scale:g}"


def _looks_like(data: bytes) -> str:
    head = data[:256].lstrip()[:64]
    if head[:1] in (b"<", b"{"):
        return "text (an error page in place of the image?)"
    return f"bytes that begin with {data[:8].hex(' ')}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
