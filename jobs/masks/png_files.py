"""Common base of formats with one PNG file per mask in an archive."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.masks import png
from maskfleet.jobs.masks.formats import MaskFormat

_ROWS = 512
"""Rows of a mask that are decoded at once."""


class PngFiles(MaskFormat):
    """Base of formats with PNG files as encoded masks. Subclasses define the archive."""

    def encoder(self, values: Sequence[Any]) -> png.Encoder:
        return png.Encoder(values)

    def columns(self, mask: bytes, *, name: str, folder: str) -> dict[str, Any]:
        return {
            "mask_object": f"{folder}/{self.archive}",
            "mask_member": name,
            "mask_bytes": len(mask),
            "mask_sha256": hashlib.sha256(mask).hexdigest(),
        }

    def problems(self, row: Mapping[str, Any], file: bytes | None) -> Iterator[str]:
        if file is None:
            yield f"its mask {row['mask_member']} is not in its shard's file"
        elif len(file) != row["mask_bytes"] or hashlib.sha256(file).hexdigest() != row["mask_sha256"]:
            yield "its mask is not the one that its row describes"
        else:
            yield from _pixel_problems(row, file)

    def classes(self, row: Mapping[str, Any], file: bytes | None, values: Sequence[Any]) -> NDArray[np.uint8]:
        if file is None:
            raise ValueError(f"the mask {row['mask_member']} is not in its shard's file")
        classes = np.empty(png.shape_of(file)[:2], np.uint8)
        for number, band in enumerate(png.class_bands(file, values, _ROWS)):
            classes[number * _ROWS :][: len(band)] = band
        return classes

    def as_png(self, file: bytes | None) -> bytes | None:
        return file


def _pixel_problems(row: Mapping[str, Any], file: bytes) -> Iterator[str]:
    try:
        height, width, *_ = png.shape_of(file)
        counts = _value_counts(file)
    except ValueError as error:
        yield f"its mask is {error}"
        return
    if (height, width) != (row["height"], row["width"]):
        yield f"its mask has {width}×{height} px and the image {row['width']}×{row['height']}"
    if sorted(counts) != sorted(count for count in row["class_pixels"] if count):
        yield "its class_pixels are not those of its mask"


def _value_counts(file: bytes) -> list[int]:
    """Number of pixels of each value or colour in a mask."""
    counts: Counter[int] = Counter()
    for band in png.bands(file, _ROWS):
        if band.ndim == 2:
            pixels = np.bincount(band.reshape(-1))
            counts.update({value: int(pixels[value]) for value in pixels.nonzero()[0].tolist()})
            continue
        shown = band.astype(np.int32) @ np.array([1, 2**8, 2**16], np.int32)
        counts.update(dict(zip(*(column.tolist() for column in np.unique(shown, return_counts=True)), strict=True)))
    return list(counts.values())
