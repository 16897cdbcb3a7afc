"""Committed masks, read back as PNG files, class maps or run lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.ledger.commit import Commit
from maskfleet.jobs.ledger.runs import StoredRun
from maskfleet.jobs.ledger.shard_files import masks_of
from maskfleet.jobs.masks import png, run_lengths
from maskfleet.jobs.masks.formats import MaskFormat, mask_format
from maskfleet.jobs.storage.contract import Storage

_ROWS = 512
"""Rows of a mask decoded at once."""


@dataclass(frozen=True, kw_only=True)
class StoredMask:
    """A committed mask and the row describing it.

    Attributes:
        row: Row of the statistics.
        values: Pixel value of each class: integers, or RGB triples.
        file: File in the shard's archive; None if the format has no archive.
        format: Format of the run's masks.
        upright: Whether the mask is aligned with the image as its EXIF orientation turns it.
    """

    row: dict[str, Any]
    values: tuple[Any, ...]
    file: bytes | None
    format: MaskFormat
    upright: bool = False

    @property
    def name(self) -> str:
        """Name of the mask, ending in `.png`."""
        return str(self.row["mask_member"])

    def png(self) -> bytes:
        """Return the mask as a PNG file."""
        return self.format.as_png(self.file) or png.Encoder(self.values).encode(self.classes())

    def pixels(self) -> NDArray[np.uint8]:
        """Return the pixels of the PNG file: (H, W), or (H, W, 3) for RGB values; uint8."""
        return np.concatenate(list(png.bands(self.png(), _ROWS)))

    def classes(self) -> NDArray[np.uint8]:
        """Return the class map (H, W), uint8."""
        return self.format.classes(self.row, self.file, self.values)

    def class_bands(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the class map from top to bottom, (rows, W), uint8. A mask stored as PNG is never held as a whole."""
        data = self.format.as_png(self.file)
        if data is not None:
            yield from png.class_bands(data, self.values, _ROWS)
            return
        classes = self.classes()
        yield from (classes[top : top + _ROWS] for top in range(0, len(classes), _ROWS))

    def run_lengths(self) -> run_lengths.Masks:
        """Return the mask of each class as run lengths."""
        return self.format.as_run_lengths(self.row) or run_lengths.Encoder(len(self.values)).encode(self.classes())


def stored_masks(
    storage: Storage, run: StoredRun, commit: Commit, rows: Sequence[dict[str, Any]]
) -> Sequence[StoredMask]:
    """Read the masks of a committed shard. Reads the shard's archive once.

    Args:
        storage: Output storage.
        run: Run of the shard.
        commit: Commit of the shard.
        rows: Rows of the shard, all with status `ok`, whose masks are read.

    Raises:
        JobError: The run stored no masks.
        StorageError: The archive is missing, damaged or lacks a mask.
    """
    if not rows:
        return []
    format_ = mask_format(run.mask_format)
    if not format_.stored:
        raise JobError(
            f"run {run.run_id} stored no masks (masks.format is 'none'); run the job with another masks.format"
        )
    files = dict(masks_of(storage, commit, format_))
    return [_stored_mask(run, row, files, format_) for row in rows]


def _stored_mask(run: StoredRun, row: dict[str, Any], files: dict[str, bytes], format_: MaskFormat) -> StoredMask:
    file = files.get(row["mask_member"])
    if file is None and format_.archive is not None:
        raise StorageError(f"{row['mask_object']} has no mask {row['mask_member']}; run verify on this output")
    values = run.job.get("masks", {}).get("values") or run.mask_values or png.default_values(len(row["class_pixels"]))
    return StoredMask(row=row, values=tuple(values), file=file, format=format_, upright=run.upright)
