"""Common base of formats read by Pillow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile as Plugin

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile
from maskfleet.jobs.images.readers.exif import orientation_of


class PillowFile(ImageFile):
    """An image opened by Pillow.

    Args:
        file: Open file.
        plugin: Pillow plugin of its format; no other one is tried.

    Raises:
        Undecodable: The plugin cannot read its header.
    """

    def __init__(self, file: IO[bytes], plugin: type[Plugin]) -> None:
        try:
            with _without_limit():
                self.image = Image.open(file, formats=(str(plugin.format),))
        except UnidentifiedImageError as error:
            raise Undecodable(
                "corrupt", f"the {plugin.format} header is damaged or of an unknown kind; save it again as PNG or TIFF"
            ) from error
        self.width, self.height = self.image.size

    def frames(self) -> int:
        return int(getattr(self.image, "n_frames", 1))

    def page(self, number: int) -> ImageFile:
        try:
            self.image.seek(number - 1)
        except EOFError as error:
            raise Undecodable("corrupt", f"the file has no page {number}; upload it again") from error
        self.width, self.height = self.image.size
        return self

    def pixels(self) -> Image.Image | NDArray[Any]:
        self.image.load()
        return self.image

    def orientation(self) -> int:
        if (stated := orientation_of(self.image.info.get("exif", b""))) is not None:
            return stated
        try:
            return int(self.image.getexif().get(ExifTags.Base.Orientation, 1))  # that of XMP, too
        except Exception:  # damaged metadata say nothing of the pixels
            return 1


def with_greys(indices: NDArray[Any], bits: int, *, white_first: bool = False) -> Image.Image:
    """Return stored greys of few bits as indices, with the greys that a viewer shows as their palette.

    Args:
        indices: Numbers below 2 ** bits, (H, W).
        bits: Bits of a number, 1 to 7.
        white_first: Whether 0 is shown white.
    """
    shown = np.arange(2**bits) * 255 // (2**bits - 1)
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette((shown[::-1] if white_first else shown).astype(np.uint8).repeat(3).tobytes())
    return image


@contextmanager
def _without_limit() -> Iterator[None]:
    """Suspend Pillow's limit of pixels; `jobs.images.formats` has its own."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
