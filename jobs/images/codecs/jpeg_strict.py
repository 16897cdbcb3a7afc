"""Strict decoding: any warning of libjpeg is damage, and so is what libjpeg passes over in silence."""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from maskfleet.jobs.images.codecs import jpeg_entropy, jpeg_markers
from maskfleet.jobs.images.contract import Undecodable

END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_NO_END = "Premature end of JPEG file"
_UNKNOWN = "Could not determine subsampling"
_SPACES = {1: "GRAY", 3: "GRAY", 4: "CMYK"}
"""Cheapest colour space to decode to, by the number of components."""

_LEAST = 8
"""Divisor of the sides that costs least."""


class OfAnotherKind(Exception):
    """simplejpeg does not open such a file; nothing is said about damage."""


def decoded(
    data: jpeg_markers.Data,
    space: str,
    *,
    progressive: bool,
    buffer: NDArray[np.uint8] | None = None,
    factor: int = 1,
) -> NDArray[np.uint8]:
    """Decode a file, as Pillow does: both call libjpeg-turbo with the same options.

    Args:
        data: Bytes of the file.
        space: Colour space of simplejpeg.
        progressive: Whether its frame is progressive.
        buffer: Flat memory for the pixels, of their size.
        factor: Divisor of both sides; libjpeg reads all data whatever it is.

    Returns:
        uint8 (H, W, C).

    Raises:
        OfAnotherKind: simplejpeg does not open it.
        Undecodable: The file is damaged.
    """
    refuse_silent_damage(data, progressive=progressive)
    try:
        return _strictly(data, space, buffer, factor)
    except ValueError as error:
        if _UNKNOWN in str(error):
            raise OfAnotherKind from error
        if _NO_END not in str(error):
            raise _corrupt(str(error)) from error
    try:  # some programs leave out the end mark; then every pixel is there all the same
        return _strictly(data[:] + END, space, buffer, factor)
    except ValueError as error:
        raise _corrupt(str(error)) from error


def refuse_silent_damage(data: jpeg_markers.Data, *, progressive: bool) -> None:
    """Refuse a file that libjpeg decodes without a warning although pixels are missing.

    Raises:
        Undecodable: The file is damaged.
    """
    if (harm := jpeg_markers.damage(data, progressive=progressive)) is not None:
        raise _corrupt(harm)


def refuse_without_end(data: bytes) -> None:
    """Refuse a file that lacks the mark of its end.

    Raises:
        Undecodable: The file is cut.
    """
    if data.find(END, data.rfind(_SCAN)) < 0:
        raise _corrupt("it ends before its pixels do")


def judge(data: jpeg_markers.Data) -> None:
    """Refuse a file that is damaged, whatever its kind. Takes no more memory than an eighth of its sides.

    Raises:
        Undecodable: The file is damaged.
    """
    frame = jpeg_markers.frame_of(data)
    if frame is None:
        raise _corrupt("it has no frame")
    if frame.precision == 8 and frame.process != jpeg_markers.LOSSLESS and frame.components in _SPACES:
        try:
            decoded(
                data, _SPACES[frame.components], progressive=frame.process in jpeg_markers.PROGRESSIVE, factor=_LEAST
            )
        except OfAnotherKind:
            pass
        else:
            return
    elif frame.process in jpeg_markers.PROGRESSIVE:
        refuse_silent_damage(data, progressive=True)
    if (harm := jpeg_entropy.damage(data)) is not None:
        raise _corrupt(harm)


def _strictly(data: jpeg_markers.Data, space: str, buffer: NDArray[np.uint8] | None, factor: int) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, space, fastdct=False, fastupsample=False, min_factor=factor, strict=True, buffer=buffer
    )
    return pixels


def _corrupt(reason: str) -> Undecodable:
    return Undecodable("corrupt", f"the JPEG is damaged ({reason}); upload it again")
