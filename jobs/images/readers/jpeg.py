"""JPEG, read by Pillow, or by simplejpeg (the extra `fast`) without a copy on the way."""

from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from maskfleet.jobs.images.readers.pillow import PillowFile

try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None


class JpegFile(PillowFile):
    """A JPEG file."""

    def frames(self) -> int:
        # A camera's MPO is a JPEG followed by previews; its first picture is the picture.
        return 1 if self.image.format == "MPO" else super().frames()

    def rgb(self, data: bytes, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """See `ImageFile.rgb`. Both decoders call libjpeg-turbo with the same options.

        Damaged files are left to Pillow: one program alone decides on them.
        """
        if simplejpeg is None or self.image.format != "JPEG" or self.image.mode != "RGB":
            return None
        size = 3 * self.width * self.height
        place = buffer[:size] if buffer is not None and buffer.size >= size else None
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data, "RGB", fastdct=False, fastupsample=False, strict=True, buffer=place
            )
        except ValueError:
            return None
        return pixels


def read_header(file: IO[bytes]) -> JpegFile:
    """Read the header of a JPEG file."""
    return JpegFile(file, JpegImagePlugin.JpegImageFile)
