"""The public reading API: the rows and masks of an output, from notebooks and programs.

Everything is read from committed shards. All methods are synchronous and safe to call from any thread, or inside the
running event loop of a notebook.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import Changed, JobError, NotFound
from maskfleet.jobs.ledger.runs import stored_runs
from maskfleet.jobs.outputs.input_images import InputImages
from maskfleet.jobs.outputs.lookup import CommittedRow, newest_row
from maskfleet.jobs.outputs.overlay import OPACITY, class_colours, overlay
from maskfleet.jobs.outputs.rows import all_rows, newest_rows, schema_of
from maskfleet.jobs.outputs.runs import RunEntry, runs
from maskfleet.jobs.outputs.stored_masks import StoredMask, stored_masks
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage

_FAILED = "failed"


def open_output(url: str, *, profile: str | None = None) -> "Output":
    """Open the output of a job for reading.

    Args:
        url: Key `output` of the job: a local folder or `s3://bucket/prefix`.
        profile: AWS profile; None for the default credentials.

    Raises:
        JobError: The output has no run, or its URL scheme is unknown.
        Denied: Credentials are missing or insufficient.
    """
    storage = open_storage(url, profile=profile)
    if next(stored_runs(storage), None) is None:
        raise JobError(f"there is no run in {url}; correct the path")
    return Output(url, storage, profile=profile)


class Output:
    """The output of a job, with all its runs. Open one with `open_output`.

    An image counts with its newest committed outcome over all runs. Shards committed by a run in progress count too.
    Tables have the columns of the statistics (`jobs.ledger.statistics.SCHEMA`).

    Attributes:
        url: Path or URL of the output.
    """

    def __init__(self, url: str, storage: Storage, *, profile: str | None = None) -> None:
        self.url = url
        self._storage = storage
        self._profile = profile

    def __repr__(self) -> str:
        return f"open_output({self.url!r})"

    @property
    def runs(self) -> list[RunEntry]:
        """The runs of the output, the newest first."""
        return runs(self.url, profile=self._profile)

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the newest row of each image over all runs, sorted by key.

        Images deleted from the input are left out: those missing from the newest complete listing of it. Their older
        rows remain in `all_rows`.

        Args:
            columns: Columns to return, such as `["key", "status"]`; None for all. Memory follows their size.

        Returns:
            A table with one row per image, ok or failed. `.to_pandas()` makes a data frame of it.

        Raises:
            JobError: There is no such column.
            StorageError: A committed file is missing or damaged.
        """
        return _table(newest_rows(self._storage, columns), columns)

    def all_rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of every run, the oldest run first, each run sorted by key.

        Args:
            columns: Columns to return; None for all. Memory follows their size.

        Returns:
            A table with one row per image and run. The column `run_id` tells runs apart.

        Raises:
            JobError: There is no such column.
            StorageError: A committed file is missing or damaged.
        """
        return _table(all_rows(self._storage, columns), columns)

    def failures(self) -> pa.Table:
        """Return the newest rows of images without a mask. Memory follows the number of failures.

        `stage`, `error_class` and `error_message` state the reason and the remedy.

        Returns:
            A table with one row per image, sorted by key.

        Raises:
            StorageError: A committed file is missing or damaged.
        """
        newest = newest_rows(self._storage)
        return _table((table.filter(pc.equal(table["status"], _FAILED)) for table in newest), None)

    def mask(self, key: str) -> NDArray[np.uint8]:
        """Return the newest mask of an image.

        Args:
            key: Key of the image, or any ending of it that no other key has.

        Returns:
            Pixel values as stored (see `masks.values`): (H, W), or (H, W, 3) for RGB values; uint8. Height and width
            are those of the image.

        Raises:
            JobError: No image has this key, several do, the image was deleted from the input, its newest outcome is a
                failure, or its run stored no masks.
            StorageError: A committed file is missing or damaged.
        """
        return self._mask(newest_row(self._storage, key)).pixels()

    def overlay(self, key: str, *, opacity: float = OPACITY, size: int | None = None) -> Image.Image:
        """Return the image with its newest mask drawn over it. Reads the image from the input again.

        Fills are translucent, contours opaque. The first class, the background, is not drawn. Other classes have the
        job's colours if its mask values are RGB, else bright ones. Dark images are brightened; images of 16 bits or of
        many bands are stretched from their 1st to their 99th percentile.

        Args:
            key: Key of the image, or any ending of it that no other key has.
            opacity: Opacity of the fill, 0 … 1. With 0, the contours remain.
            size: Longest side of the picture in px; None for the size of the image.

        Returns:
            An RGB image. A notebook shows it as the result of a cell.

        Raises:
            JobError: As `mask` raises; or the image cannot be shown.
            NotFound: The image is no longer in the input.
            Changed: The image has changed since its mask was made.
            StorageError: A committed file is missing or damaged, or the input cannot be read.
        """
        found = newest_row(self._storage, key)
        mask = self._mask(found)
        newest = next(stored_runs(self._storage, newest_first=True))
        with InputImages(newest, profile=self._profile, upright=found.run.upright) as images:
            shown = images.read(found.row)
        match shown.error:
            case None if shown.pixels is None:
                raise JobError(f"{found.row['key']} cannot be shown: {shown.reason}")
            case None:
                return overlay(shown.pixels, mask.classes(), class_colours(mask.values), size=size, opacity=opacity)
            case NotFound():
                raise NotFound(f"{shown.reason}, so there is no image to draw on; mask() still works") from shown.error
            case Changed():
                raise Changed(f"{shown.reason}; run the job again") from shown.error
            case error:
                raise error

    def _mask(self, found: CommittedRow) -> StoredMask:
        row = found.row
        if row["status"] == _FAILED:
            raise JobError(
                f"{row['key']} has no mask: {row['stage']} failed in run {found.run.run_id} ({row['error_message']})"
            )
        (mask,) = stored_masks(self._storage, found.run, found.commit, [row])
        return mask


def _table(tables: Iterator[pa.Table], columns: Sequence[str] | None) -> pa.Table:
    return pa.concat_tables([schema_of(columns).empty_table(), *tables])
