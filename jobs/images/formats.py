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


SEVERAL_PAGES = "several_pages"
"""Error class of a file with pages, in a job that does not ask for them."""


class ImageFile(Protocol):
    """An opened image with a parsed header. Subclasses override the defaults they need to.

    Attributes:
        width: Stored width in px.
        height: Stored height in px.
        colours: Bands of an array that are colours; the rest is alpha or unspecified. None if the array says enough.
        maximum: Largest number of an array of integers; None if its type says it.
        nodata: The number that stands for no data; None if the file states none.
        gives_rows: Whether `rows` reads this format; libvips reads the rows of others.
        fail_on: What libvips refuses when it reads rows: "warning", or "none" if `check_rows` finds all damage.
    """

    width: int
    height: int
    colours: int | None = None
    maximum: int | None = None
    nodata: float | None = None
    gives_rows: bool = False
    fail_on: str = "warning"

    def frames(self) -> int:
        """Return the number of independent images in the file; smaller copies and masks of another do not count."""
        return 1

    def page(self, number: int) -> "ImageFile":
        """Return one of the independent images in the file.

        Args:
            number: Number of the image, counted from 1.

        Raises:
            Undecodable: There is no such image.
        """
        if number != 1:
            raise Undecodable("corrupt", f"the file has no page {number}; upload it again")
        return self

    def pixels(self) -> "Image.Image | NDArray[Any]":
        """Decode the whole image.

        Returns:
            The pixels on the stored grid, whatever the EXIF orientation: a Pillow image, or an array (H, W) or
            (H, W, C) of any dtype. `jobs.images.channels` interprets both.
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
        has_pages: Whether the images of a file with several are pages, chosen by the job's `pages`. If not, such a file
            is refused.
    """

    name: str
    endings: tuple[str, ...]
    signature: bytes
    reader: str
    in_rows: bool = False
    has_pages: bool = False

    def open(self, file: IO[bytes], *, max_pixels: int, page: int = 0) -> ImageFile:
        """Read the header of an image.

        Args:
            file: Open file, seekable.
            max_pixels: Pixels of the largest accepted image.
            page: Number of a page, counted from 1; 0 for the only image of a file.

        Raises:
            Undecodable: The image is damaged or too large, or the file holds several and no page is named.
        """
        image = self.header(file)
        if page:
            image = image.page(page)
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise Undecodable(
                "too_large",
                f"{pixels} pixels and run.max_image_pixels is {max_pixels}; raise it if the image is genuine",
            )
        if not page and (frames := image.frames()) > 1:
            raise self._several(frames)
        return image

    def header(self, file: IO[bytes]) -> ImageFile:
        """Read the header of an image, without a check.

        Raises:
            Undecodable: The header is damaged.
        """
        file.seek(0)
        image: ImageFile = importlib.import_module(self.reader).read_header(file)
        return image

    def _several(self, frames: int) -> Undecodable:
        if self.has_pages:
            remedy = 'set pages = "each" or "first" in the job'
            return Undecodable(SEVERAL_PAGES, f"{frames} frames or pages in one file; {remedy}")
        return Undecodable("unsupported", f"{frames} frames or pages in one file; split it into single images")


FORMATS: tuple[Format, ...] = (
    Format(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        rb"\xff\xd8\xff",
        "maskfleet.jobs.images.readers.jpeg",
        in_rows=True,
    ),
    Format("PNG", (".png",), rb"\x89PNG\r\n\x1a\n", "maskfleet.jobs.images.readers.png", in_rows=True),
    Format(
        "TIFF",
        (".tif", ".tiff"),
        rb"(II|MM)([*+]\0|\0[*+])",
        "maskfleet.jobs.images.readers.tiff",
        in_rows=True,
        has_pages=True,
    ),
    Format("WebP", (".webp",), rb"RIFF....WEBP", "maskfleet.jobs.images.readers.webp", in_rows=True),
    Format("BMP", (".bmp",), rb"BM", "maskfleet.jobs.images.readers.bmp"),
    Format("GIF", (".gif",), rb"GIF8[79]a", "maskfleet.jobs.images.readers.gif", has_pages=True),
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


STACKS = tuple(ending for format_ in FORMATS if format_.has_pages for ending in format_.endings)
"""File name endings of images that may have pages."""


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
