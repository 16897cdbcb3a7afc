"""GIF, read by Pillow. The frames of a file with several are its pages."""

from typing import IO

from PIL import GifImagePlugin

from maskfleet.jobs.images.readers.pillow import PillowFile


def read_header(file: IO[bytes]) -> PillowFile:
    """Read the header of a GIF file."""
    return PillowFile(file, GifImagePlugin.GifImageFile)
