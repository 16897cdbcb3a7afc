"""Image bytes to the pixels that the network sees. Runs in decoding processes (`jobs.decoders`); knows no storage.

What a file becomes, by Pillow's mode, for a network of three channels or of one:

| mode                  | three channels                  | one channel                        |
|-----------------------|---------------------------------|------------------------------------|
| 1 (bilevel)           | 0 or 255, three times           | 0 or 255                           |
| L                     | the grey, three times           | as stored                          |
| LA                    | alpha dropped, then as L        | alpha dropped                      |
| I;16 (16-bit grey)    | round(v · 255 / 65535), as L    | round(v · 255 / 65535)             |
| P, PA (palette)       | the palette's colours           | their luma                         |
| RGB                   | as stored                       | luma, 0.299 R + 0.587 G + 0.114 B  |
| RGBA, RGBX            | alpha dropped, colours as stored| alpha dropped, then luma           |
| CMYK, YCbCr, LAB, HSV | Pillow's conversion, no profile | that, then luma                    |
| I, F (32-bit)         | refused: no range is stated     | refused                            |

16-bit colour PNG and TIFF reach the network by their high byte. Nothing is clipped. EXIF orientation
is not applied: the mask's grid is the stored one. ICC profiles are left alone. A file of several
frames or pages is refused rather than cut down to its first.
"""

import io
import re
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
"""The only decoders that are ever tried, by content, whatever the name says."""

MIN_SIDE = 16
"""Of what reaches the network, in px: four halvings."""


class Undecodable(Exception):
    """An image cannot be had from these bytes.

    Attributes:
        error_class: `empty`, `unidentified`, `corrupt`, `unsupported`, `too_large`, `too_small` or `memory`.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def decode(
    data: bytes, *, channels: int, scale: float = 1.0, max_pixels: int = 89_478_485
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The pixels of an image.

    Args:
        data: The file's bytes.
        channels: 1 or 3, what the network takes.
        scale: Resize both sides by this, truncated to whole pixels, with Pillow's bicubic filter.
        max_pixels: Larger images are refused, from their header.

    Returns:
        Pixels (H, W, channels) after scaling; and the stored height and width.

    Raises:
        Undecodable: With a named reason.
    """
    if not data:
        raise Undecodable("empty", "the file is empty; upload it again")
    try:
        image = _opened(data, max_pixels)
        height, width = image.height, image.width
        size = int(scale * width), int(scale * height)
        if min(size) < MIN_SIDE:
            raise Undecodable("too_small", f"{_size(width, height, scale)}; the network needs {MIN_SIDE} px a side")
        image.load()
        image = _converted(image, channels)
        if size != (width, height):
            image = image.resize(size, Image.Resampling.BICUBIC)
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise Undecodable("corrupt", f"the image does not decode ({_first_line(error)}); upload it again") from error
    pixels = np.asarray(image)
    return pixels.reshape(size[1], size[0], channels), (height, width)


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise Undecodable("unidentified", f"not a {', '.join(FORMATS)} image but {_looks_like(data)}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\d+", str(error))
        count = pixels[0] if pixels else "too many"
        raise Undecodable(
            "too_large",
            f"{count} pixels and run.max_image_pixels is {max_pixels}; raise it if the image is genuine",
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before
    # A camera's MPO is a JPEG with previews behind it; the first picture is the picture.
    if frames > 1 and image.format != "MPO":
        raise Undecodable("unsupported", f"{frames} frames or pages in one file; split it into single images")
    return image


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise Undecodable("unsupported", f"32-bit pixels (mode {image.mode}) state no range; store 8 or 16 bits")
    elif image.mode in ("LA", "La"):
        image = image.getchannel("L")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


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
