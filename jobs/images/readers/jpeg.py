"""JPEG of 8 bits, read by simplejpeg; Pillow reads CMYK of a sampling that simplejpeg does not know."""

import io
import mmap
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from maskfleet.jobs.images.codecs import jpeg_markers, jpeg_strict
from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile
from maskfleet.jobs.images.readers.jpeg_precise import PreciseJpeg
from maskfleet.jobs.images.readers.pillow import PillowFile

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Colour spaces of simplejpeg by Pillow's mode."""

_HEAD = 2**20


class JpegFile(PillowFile):
    """A JPEG file.

    Args:
        file: Open file.

    Raises:
        Undecodable: Its header is damaged.
    """

    fail_on = "none"  # libvips takes a missing end mark for damage

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, JpegImagePlugin.JpegImageFile)
        self._file = file
        self._is_progressive = "progressive" in self.image.info

    def frames(self) -> int:
        # A camera's MPO is a JPEG followed by previews; its first picture is the picture.
        return 1 if self.image.format == "MPO" else super().frames()

    def rgb(self, data: bytes, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """See `ImageFile.rgb`."""
        if self.image.mode != "RGB":
            return None
        size = 3 * self.width * self.height
        memory = buffer[:size] if buffer is not None and buffer.size >= size else None
        try:
            return jpeg_strict.decoded(data, "RGB", progressive=self._is_progressive, buffer=memory)
        except jpeg_strict.OfAnotherKind:
            return None

    def pixels(self) -> Image.Image:
        self._file.seek(0)
        data = self._file.read()
        try:
            pixels = jpeg_strict.decoded(data, _SPACES[self.image.mode], progressive=self._is_progressive)
        except jpeg_strict.OfAnotherKind:
            jpeg_strict.judge(data)
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(data + jpeg_strict.END))
            image.load()
            return image
        if self.image.mode == "CMYK":  # stored inverted, by a custom that Pillow follows
            return Image.merge("CMYK", [Image.fromarray(255 - pixels[..., band]) for band in range(4)])
        return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])

    def check_rows(self) -> None:
        """See `ImageFile.check_rows`: libvips does not hear libjpeg's warnings after the last row."""
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            jpeg_strict.judge(data)


def read_header(file: IO[bytes]) -> ImageFile:
    """Read the header of a JPEG file.

    Raises:
        Undecodable: It is damaged, or of a kind that is not supported.
    """
    try:
        return JpegFile(file)
    except Undecodable:
        file.seek(0)
        frame = jpeg_markers.frame_of(file.read(_HEAD))
        if frame is None or (frame.precision == 8 and frame.process not in (jpeg_markers.LOSSLESS, jpeg_markers.LS)):
            raise
        return PreciseJpeg(file, frame)
