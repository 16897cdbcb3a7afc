"""WebP, read by Pillow."""

from typing import IO

from PIL import WebPImagePlugin

from maskfleet.jobs.images.readers.pillow import PillowFile


def read_header(file: IO[bytes]) -> PillowFile:
    """Read the header of a WebP file."""
    return PillowFile(file, WebPImagePlugin.WebPImageFile)
