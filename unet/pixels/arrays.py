"""Arrays that a caller hands over, checked: images of a dtype that travels to the device, with their levels."""

from typing import Any

from numpy import uint8
from numpy.typing import NDArray

from maskfleet.unet.pixels.normalization import Levels, Normalization
from maskfleet.unet.pixels.numbers import Unstated, levels_of, transported, white_of


def image_of(
    array: NDArray[Any], number: int, *, channels: int, declared: Normalization | None
) -> tuple[NDArray[Any], Levels | None]:
    """Return an image (H, W, C) and its levels; None for 8 bits without a declared normalisation.

    Args:
        array: (H, W, C), or (H, W) for one channel.
        number: Its number, for messages.
        channels: Channels that the network takes.
        declared: Declared normalisation.

    Raises:
        TypeError: Its numbers have no known range.
        ValueError: It has another number of channels.
    """
    if array.ndim == 2 and channels == 1:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] != channels:
        raise ValueError(f"image {number} must have the shape (H, W, {channels}), got {array.shape}")
    try:
        image = transported(array)
        if declared is not None:
            return image, levels_of(declared, channels, lambda: [image])
        return image, None if image.dtype == uint8 else Levels.of_white(white_of(image), channels)
    except Unstated as error:
        raise TypeError(f"image {number} has {error}") from error
