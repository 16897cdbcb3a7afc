"""JPEG, read by simplejpeg, for which any warning of libjpeg is damage; CMYK is read by Pillow."""

from typing import IO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.readers import jpeg_markers
from maskfleet.jobs.images.readers.pillow import PillowFile

_SPACES = {"L": "GRAY", "RGB": "RGB"}
"""Colour spaces of simplejpeg by Pillow's mode. It does not decode CMYK of every subsampling."""

_END = b"\xff\xd9"
_NO_END = "Premature end of JPEG file"
_HEAD = 2**20


class JpegFile(PillowFile):
    """A JPEG file.

    Args:
        file: Open file.

    Raises:
        Undecodable: It is damaged, or of a kind that is not supported.
    """

    def __init__(self, file: IO[bytes]) -> None:
        try:
            super().__init__(file, JpegImagePlugin.JpegImageFile)
        except Undecodable:
            file.seek(0)
            jpeg_markers.refuse_other_kinds(file.read(_HEAD))
            raise
        self._file = file

    def frames(self) -> int:
        # A camera's MPO is a JPEG followed by previews; its first picture is the picture.
        return 1 if self.image.format == "MPO" else super().frames()

    def rgb(self, data: bytes, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """See `ImageFile.rgb`."""
        if self.image.mode != "RGB":
            return None
        size = 3 * self.width * self.height
        return self._decoded(data, "RGB", buffer[:size] if buffer is not None and buffer.size >= size else None)

    def pixels(self) -> Image.Image:
        if self.image.mode not in _SPACES:
            return super().pixels()
        self._file.seek(0)
        pixels = self._decoded(self._file.read(), _SPACES[self.image.mode])
        return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])

    def _decoded(self, data: bytes, space: str, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Decode a file, as Pillow does: both call libjpeg-turbo with the same options.

        Raises:
            Undecodable: The file is damaged.
        """
        if (harm := jpeg_markers.damage(data, progressive="progressive" in self.image.info)) is not None:
            raise _corrupt(harm)
        try:
            return _strictly(data, space, buffer)
        except ValueError as error:
            if _NO_END not in str(error):
                raise _corrupt(str(error)) from error
        try:  # some programs leave out the end mark; then every pixel is there all the same
            return _strictly(data + _END, space, buffer)
        except ValueError as error:
            raise _corrupt(str(error)) from error


def read_header(file: IO[bytes]) -> JpegFile:
    """Read the header of a JPEG file."""
    return JpegFile(file)


def _strictly(data: bytes, space: str, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, space, fastdct=False, fastupsample=False, strict=True, buffer=buffer
    )
    return pixels


def _corrupt(reason: str) -> Undecodable:
    return Undecodable("corrupt", f"the JPEG is damaged ({reason}); upload it again")
