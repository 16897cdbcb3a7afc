"""LERC inside TIFF, as libtiff writes it: a mask of valid pixels stands for NaN, or for an alpha band of 0 and 255."""

from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.images.contract import Undecodable

_PARAMETERS = 50674
_DEFLATE, _ZSTD = 1, 2
_PLAIN = 1
"""Planar configuration of bands that are stored together."""


def decoded(data: bytes, page: Any) -> NDArray[Any]:
    """Decode a strip or tile, (rows, W, bands).

    Args:
        data: Bytes of the strip or tile.
        page: Page of tifffile.

    Raises:
        Undecodable: It has other bands than the page states.
    """
    parameters = page.tags.valueof(_PARAMETERS) or (0, 0)
    blob: bytes | bytearray = data
    if parameters[1] == _DEFLATE:
        blob = imagecodecs.zlib_decode(data)
    elif parameters[1] == _ZSTD:
        blob = imagecodecs.zstd_decode(data)
    samples, valid = imagecodecs.lerc_decode(blob, masks=True)
    if valid is not None and valid.ndim == 3:  # bands that differ in their valid pixels are stored one by one
        samples, valid = np.moveaxis(samples, 0, 2), np.moveaxis(valid, 0, 2)
    samples = np.atleast_3d(samples)
    if page.parent.byteorder == ">":  # libtiff swaps before it compresses
        samples = samples.byteswap()
    bands = page.samplesperpixel if page.planarconfig == _PLAIN else 1
    if valid is not None:
        valid = np.atleast_3d(valid)
        if samples.dtype.kind == "f":
            samples = np.where(valid, samples, samples.dtype.type(np.nan))
        elif samples.shape[2] == bands - 1:
            samples = np.concatenate([samples, valid * samples.dtype.type(255)], axis=2)
    if samples.shape[2] != bands:
        raise Undecodable("corrupt", f"{samples.shape[2]} bands where the TIFF states {bands}; upload it again")
    return samples
