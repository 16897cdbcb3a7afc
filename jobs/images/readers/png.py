"""PNG, read by Pillow."""

from typing import IO

from PIL import PngImagePlugin

from maskfleet.jobs.images.readers.pillow import PillowFile


def read_header(file: IO[bytes]) -> PillowFile:
    """Read the header of a PNG file."""
    return PillowFile(file, PngImagePlugin.PngImageFile)
