"""JPEG of more than 8 bits, lossless JPEG and JPEG-LS, decoded by imagecodecs."""

from typing import IO, Any

import imagecodecs
from numpy.typing import NDArray

from maskfleet.jobs.images.codecs import jpeg_strict
from maskfleet.jobs.images.codecs.jpeg_markers import LS, Frame
from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile


class PreciseJpeg(ImageFile):
    """A JPEG file of 2 to 16 bits.

    Args:
        file: Open file.
        frame: Its frame header.

    Raises:
        Undecodable: It has no grey and no three colours.
    """

    def __init__(self, file: IO[bytes], frame: Frame) -> None:
        self._file, self._frame = file, frame
        self.width, self.height = frame.width, frame.height
        if frame.components not in (1, 3):
            raise Undecodable(
                "unsupported", f"a JPEG of {frame.components} bands of {frame.precision} bits; store TIFF"
            )
        self.colours, self.maximum = frame.components, 2**frame.precision - 1

    def pixels(self) -> NDArray[Any]:
        self._file.seek(0)
        data = self._file.read()
        if self._frame.process == LS:
            jpeg_strict.refuse_without_end(data)  # its decoder searches for minutes
            ls: NDArray[Any] = imagecodecs.jpegls_decode(data)
            return ls
        jpeg_strict.judge(data)
        pixels: NDArray[Any] = imagecodecs.jpeg8_decode(data)
        return pixels

    def check_rows(self) -> None:
        """See `ImageFile.check_rows`."""
        raise Undecodable("unsupported", f"a JPEG of {self._frame.precision} bits cannot be read in rows; store TIFF")
