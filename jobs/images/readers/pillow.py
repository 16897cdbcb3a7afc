"""Common base of formats read by Pillow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

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

    def pixels(self) -> Image.Image:
        self.image.load()
        return self.image

    def orientation(self) -> int:
        if (stated := orientation_of(self.image.info.get("exif", b""))) is not None:
            return stated
        try:
            return int(self.image.getexif().get(ExifTags.Base.Orientation, 1))  # that of XMP, too
        except Exception:  # damaged metadata say nothing of the pixels
            return 1


@contextmanager
def _without_limit() -> Iterator[None]:
    """Suspend Pillow's limit of pixels; `jobs.images.formats` has its own."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
