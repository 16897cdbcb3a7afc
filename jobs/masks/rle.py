"""The format `rle`: masks as COCO's compressed run lengths in the rows of the statistics, with no other file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.masks import run_lengths
from maskfleet.jobs.masks.formats import MaskFormat


class Rle(MaskFormat):
    """Run lengths in the column `mask_rle`."""

    def encoder(self, values: Sequence[Any]) -> run_lengths.Encoder:
        return run_lengths.Encoder(len(values))

    def columns(self, mask: run_lengths.Masks, *, name: str, folder: str) -> dict[str, Any]:
        return {"mask_rle": mask, "mask_member": name}

    def problems(self, row: Mapping[str, Any], file: bytes | None) -> Iterator[str]:
        if row["mask_rle"] is None:
            yield "it has no mask"
            return
        try:
            classes = run_lengths.decode(row["mask_rle"], row["height"], row["width"])
        except (ValueError, IndexError) as error:
            yield f"its mask does not decode ({error})"
            return
        if np.bincount(classes.reshape(-1), minlength=len(row["class_pixels"])).tolist() != row["class_pixels"]:
            yield "its class_pixels are not those of its mask"

    def classes(self, row: Mapping[str, Any], file: bytes | None, values: Sequence[Any]) -> NDArray[np.uint8]:
        return run_lengths.decode(row["mask_rle"], row["height"], row["width"])

    def as_run_lengths(self, row: Mapping[str, Any]) -> run_lengths.Masks:
        return list(row["mask_rle"])


FORMAT = Rle()
