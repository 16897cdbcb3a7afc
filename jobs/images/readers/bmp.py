"""BMP, read by Pillow."""

from typing import IO

from PIL import BmpImagePlugin

from maskfleet.jobs.images.readers.pillow import PillowFile


def read_header(file: IO[bytes]) -> PillowFile:
    """Read the header of a BMP file."""
    return PillowFile(file, BmpImagePlugin.BmpImageFile)
