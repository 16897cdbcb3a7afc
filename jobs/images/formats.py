"""Image formats: signatures, file name endings and readers. Each is one module and one line of `FORMATS`.

A format's module opens a file and hands out its pixels as stored. Rules shared by all formats lie elsewhere: limits of
size and frames here, channels and bit depths in `jobs.images.channels`, orientation and scaling in
`jobs.images.decode`.

The planner takes file endings from here, so this module loads no image library; a format's module is imported on first
use.
"""

import importlib
import re
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.foreign import HEAD, looks_like

if TYPE_CHECKING:
    from PIL import Image


class ImageFile(Protocol):
    """An opened image with a parsed header. Subclasses override the defaults they need to.

    Attributes:
        width: Stored width in px.
        height: Stored height in px.
        colours: Bands of an array that are colours; the rest is alpha or unspecified. None if the array says enough.
        maximum: Largest number of an array of integers; None if its type says it.
        gives_rows: Whether `rows` reads this format; libvips reads the rows of others.
    """

    width: int
    height: int
    colours: int | None = None
    maximum: int | None = None
    gives_rows: bool = False

    def frames(self) -> int:
        """Return the number of independent images in the file; smaller copies and masks of another do not count."""
        return 1

    def pixels(self) -> "Image.Image | NDArray[Any]":
        """Decode the whole image.

        Returns:
            The pixels on the stored grid, whatever the EXIF orientation: a Pillow image, or an array (H, W) or
            (H, W, C) of any dtype. `jobs.images.channels.planes_of` interprets both.
        """

    def numbers(self) -> "Image.Image | NDArray[Any]":
        """Decode the whole image as numbers that are stored, for masks.

        Returns:
            As `pixels`, except that nothing is converted for display: greys of 1, 2 and 4 bits come as indices with a
            palette (mode P), and neither MINISWHITE nor a palette changes a number.
        """
        return self.pixels()

    def rows(self, top: int, bottom: int) -> "Image.Image | NDArray[Any]":
        """Decode some rows as `pixels` decodes all of them, in bounded memory. Only if `gives_rows`.

        Args:
            top: First row.
            bottom: Row after the last one.
        """
        raise Undecodable("unsupported", "this format gives no rows; store TIFF")

    def check_rows(self) -> None:
        """Refuse a file that libvips would misread, or whose damage it would not see. Called before it reads rows.

        Raises:
            Undecodable: The file is such a one.
        """
        return

    def orientation(self) -> int:
        """Return the EXIF orientation, 1 to 8; 1 if none is stated. Called after `pixels`, or without them."""
        return 1

    def rgb(self, data: bytes, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """Decode a colour image on a faster path with the same result.

        Args:
            data: Bytes of the file.
            buffer: Flat memory for the pixels, used from its beginning if they fit.

        Returns:
            uint8 (H, W, 3); None if this image has no faster path.
        """
        return None


class Format(NamedTuple):
    """A line of the table.

    Attributes:
        name: Name for people.
        endings: Endings of file names, in lower case.
        signature: Regular expression for the first bytes of a file.
        reader: Module with a function `read_header(file: IO[bytes]) -> ImageFile`.
        in_rows: Whether large images of this format are read row by row, by `ImageFile.rows` or by libvips.
    """

    name: str
    endings: tuple[str, ...]
    signature: bytes
    reader: str
    in_rows: bool = False

    def open(self, file: IO[bytes], *, max_pixels: int) -> ImageFile:
        """Read the header of an image.

        Args:
            file: Open file, seekable.
            max_pixels: Pixels of the largest accepted image.

        Raises:
            Undecodable: The image is damaged or too large, or the file holds several.
        """
        file.seek(0)
        image: ImageFile = importlib.import_module(self.reader).read_header(file)
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise Undecodable(
                "too_large",
                f"{pixels} pixels and run.max_image_pixels is {max_pixels}; raise it if the image is genuine",
            )
        if (frames := image.frames()) > 1:
            raise Undecodable("unsupported", f"{frames} frames or pages in one file; split it into single images")
        return image


FORMATS: tuple[Format, ...] = (
    Format(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        rb"\xff\xd8\xff",
        "maskfleet.jobs.images.readers.jpeg",
        in_rows=True,
    ),
    Format("PNG", (".png",), rb"\x89PNG\r\n\x1a\n", "maskfleet.jobs.images.readers.png", in_rows=True),
    Format("TIFF", (".tif", ".tiff"), rb"(II|MM)([*+]\0|\0[*+])", "maskfleet.jobs.images.readers.tiff", in_rows=True),
    Format("WebP", (".webp",), rb"RIFF....WEBP", "maskfleet.jobs.images.readers.webp", in_rows=True),
    Format("BMP", (".bmp",), rb"BM", "maskfleet.jobs.images.readers.bmp"),
    Format("AVIF", (".avif",), rb".{4}ftyp(?:....){0,14}?avi[fs]", "maskfleet.jobs.images.readers.coded.avif"),
    Format(
        "JPEG 2000",
        (".jp2", ".j2k", ".jpx"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        "maskfleet.jobs.images.readers.coded.jpeg2000",
    ),
    Format(
        "JPEG XL",
        (".jxl",),
        rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
        "maskfleet.jobs.images.readers.coded.jpeg_xl",
    ),
    Format(".npy", (".npy",), rb"\x93NUMPY", "maskfleet.jobs.images.readers.npy"),
)
"""All formats. Files are recognised by content, whatever their names; nothing else is ever opened."""

ENDINGS = tuple(ending for format_ in FORMATS for ending in format_.endings)
"""File name endings of images, in lower case; the planner finds images in folders by them."""


def recognised(file: IO[bytes]) -> Format:
    """Return the format of a file.

    Raises:
        Undecodable: It is none of `FORMATS`.
    """
    file.seek(0)
    head = file.read(HEAD)
    for format_ in FORMATS:
        if re.match(format_.signature, head, re.DOTALL):
            return format_
    raise unidentified(head)


def unidentified(head: bytes) -> Undecodable:
    """Return the refusal of a file with these first bytes, which no format has."""
    *names, last = (format_.name for format_ in FORMATS)
    return Undecodable("unidentified", f"not a {', '.join(names)} or {last} file but {looks_like(head)}")
