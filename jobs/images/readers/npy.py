"""NumPy's .npy: an array (H, W) or (H, W, C). Pickled objects are refused."""

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile


class Array(ImageFile):
    """An array as an image."""

    def __init__(self, array: NDArray[Any]) -> None:
        if array.ndim not in (2, 3) or not array.size:
            raise Undecodable("unsupported", f"an array of shape {array.shape}; an image has (H, W) or (H, W, C)")
        self.height, self.width = array.shape[:2]
        self._array = array.astype(array.dtype.newbyteorder("="), copy=False)

    def pixels(self) -> NDArray[Any]:
        return self._array


def read_header(file: IO[bytes]) -> Array:
    """Read an array."""
    return Array(np.load(file, allow_pickle=False))
