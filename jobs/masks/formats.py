"""Mask formats: encoding and storage of masks. Each is one module and one line of `FORMATS`.

An encoder turns one class map into one encoded mask. A format then stores the encoded masks of a shard in an archive,
one object per shard, or in the rows of the statistics, or not at all. Formats know nothing of storage, runs and
commits: callers read and write objects and pass bytes.

The job schema validates names by `FORMATS`, so this module loads neither numpy nor pyarrow; `mask_format` imports a
format's module on first use.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from maskfleet.jobs.masks.run_lengths import Masks

FORMATS = {
    "png": "maskfleet.jobs.masks.loose",
    "tar": "maskfleet.jobs.masks.tar",
    "parquet": "maskfleet.jobs.masks.parquet",
    "rle": "maskfleet.jobs.masks.rle",
    "none": "maskfleet.jobs.masks.none",
}
"""Values of `masks.format` and the modules that implement them. Each module has a `MaskFormat` named `FORMAT`."""

EncodedMask = Any
"""Result of a format's encoder, opaque to everything but the format; the bytes of a file if the format has an archive.
"""


class RowEncoder(Protocol):
    """One mask, encoded while its rows arrive from top to bottom."""

    def write(self, classes: "NDArray[np.uint8]") -> None:
        """Add rows of the class map, (rows, W)."""

    def finish(self) -> EncodedMask:
        """Return the mask after its last row; equal to `Encoder.encode` of the whole class map."""


class Encoder(Protocol):
    """Encodes class maps. Safe to use from several threads."""

    def encode(self, classes: "NDArray[np.uint8]") -> EncodedMask:
        """Encode a class map (H, W). Equal class maps give equal results."""

    def row_encoder(self, height: int, width: int) -> RowEncoder:
        """Start a mask of `height` × `width` px, for a class map larger than memory."""


class MaskFormat(Protocol):
    """How masks are encoded, stored, read back and checked. Subclasses override the defaults they need to.

    Attributes:
        stored: Whether masks are stored at all.
        loose: Whether committed masks are also exported as files below `masks/`. Requires an archive.
        archive: Name of the object with the masks of a shard; None if there is none.
        archive_label: Word for archives in the summary of a run.
    """

    stored: bool = True
    loose: bool = False
    archive: str | None = None
    archive_label: str = ""

    def encoder(self, values: Sequence[Any]) -> Encoder | None:
        """Create the encoder of a run; None if masks are not stored.

        Args:
            values: Pixel value of each class, 0 … 255 or RGB.
        """

    def columns(self, mask: EncodedMask, *, name: str, folder: str) -> dict[str, Any]:
        """Return the columns of a mask in its row of the statistics.

        Args:
            mask: Encoded mask.
            name: Name of the mask, unique in the run.
            folder: Folder of the shard's archive in the output.
        """

    def pack(self, table: "pa.Table", files: Mapping[str, bytes]) -> bytes:
        """Write a shard's archive. Called only if the format has one and the shard has a mask.

        Args:
            table: Statistics of the shard, a row per image.
            files: Encoded masks by name, in the order of their rows.
        """
        raise TypeError(f"{type(self).__name__} has no archive")

    def unpack(self, archive: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the names and encoded masks of an archive, in its order."""
        raise TypeError(f"{type(self).__name__} has no archive")

    def agrees(self, archive: bytes, table: "pa.Table") -> bool:
        """Whether the statistics stored in an archive, if any, are those of its shard."""
        return True

    def problems(self, row: Mapping[str, Any], file: bytes | None) -> Iterator[str]:
        """Check a stored mask against its row.

        Args:
            row: Statistics of an image with status `ok`.
            file: Encoded mask from the shard's archive; None if it is not there.

        Yields:
            A clause for each problem, without the image's key.
        """

    def classes(self, row: Mapping[str, Any], file: bytes | None, values: Sequence[Any]) -> "NDArray[np.uint8]":
        """Decode a stored mask.

        Args:
            row: Statistics of its image.
            file: Encoded mask from the archive; None if the format has no archive.
            values: Pixel value of each class.

        Returns:
            Class map (H, W).
        """

    def as_png(self, file: bytes | None) -> bytes | None:
        """Return the mask as a PNG file if it is stored as one, else None."""
        return None

    def as_run_lengths(self, row: Mapping[str, Any]) -> "Masks | None":
        """Return the mask as run lengths if they are in its row, else None."""
        return None

    def locations(self, output: str, run_id: str) -> Iterator[tuple[str, str]]:
        """Yield a label of one word and a path or pattern for each place with masks of a run."""
        if self.loose:
            yield "masks", f"{output}/masks/"
        if self.archive is not None:
            yield self.archive_label, f"{output}/runs/{run_id}/shards/*/*/{self.archive}"


def mask_format(name: str) -> MaskFormat:
    """Import and return a format.

    Args:
        name: Key of `FORMATS`.

    Raises:
        KeyError: There is no such format.
    """
    found: MaskFormat = importlib.import_module(FORMATS[name]).FORMAT
    return found
