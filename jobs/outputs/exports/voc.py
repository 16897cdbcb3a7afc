"""Masks in the layout of Pascal VOC: `SegmentationClass/<name>.png` with VOC's palette, and `labels.txt`."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.outputs.exports.contract import FileExport
from maskfleet.jobs.outputs.stored_masks import StoredMask

_MOST_CLASSES = 255
"""The last palette entry is VOC's border, which is not a class."""


class VocExport(FileExport):
    """One palette PNG per mask, with class numbers as pixels."""

    _classes = 0

    def write(self, masks: Sequence[StoredMask]) -> None:
        self._classes = max([self._classes, *(len(mask.values) for mask in masks)])
        super().write(masks)

    def file(self, mask: StoredMask) -> tuple[str, bytes]:
        if len(mask.values) > _MOST_CLASSES:
            raise JobError(f"VOC masks have at most {_MOST_CLASSES} classes; use the form coco")
        return f"SegmentationClass/{mask.name}", _palette_png(mask.classes())

    def finish(self) -> str:
        labels = ["background", *(self.class_name(number) for number in range(1, self._classes))]
        self.target.write("labels.txt", "".join(f"{label}\n" for label in labels).encode())
        return ""


def _palette_png(classes: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(classes)
    image.putpalette(_palette())  # also turns grey values into palette indices
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _palette() -> list[int]:
    """Return 256 RGB colours as a flat list of 768 integers in 0 … 255."""
    return [channel for number in range(256) for channel in _colour(number)]


def _colour(number: int) -> Iterator[int]:
    """Deal the bits of a class number to red, green and blue, filling each from its highest bit."""
    for channel in range(3):
        bits = [(number >> (3 * place + channel)) & 1 for place in range(8)]
        yield sum(bit << (7 - place) for place, bit in enumerate(bits))


EXPORT = VocExport
