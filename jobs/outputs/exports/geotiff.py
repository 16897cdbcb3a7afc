"""Masks as GeoTIFF, with the georeference and resolution of their images."""

import io
from collections.abc import Sequence

from maskfleet.jobs.errors import Changed, NotFound
from maskfleet.jobs.inputs.containers.formats import is_member
from maskfleet.jobs.inputs.fetch import Inputs, file_of
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.masks import geotiff
from maskfleet.jobs.masks.png import bands, shape_of
from maskfleet.jobs.outputs.exports.contract import FileExport
from maskfleet.jobs.outputs.stored_masks import StoredMask
from maskfleet.jobs.storage.contract import Fault, Storage

_HEADER = 2**16
"""Bytes of an image read at once for its tags."""


class GeoTiffExport(FileExport):
    """One tiled TIFF per mask."""

    def __init__(self, target: Storage, *, class_names: Sequence[str], inputs: Inputs) -> None:
        super().__init__(target, class_names=class_names, inputs=inputs)
        self._placed: set[str] = set()

    def file(self, mask: StoredMask) -> tuple[str, bytes]:
        placement = self._placement(mask)
        if placement is not None:
            self._placed.add(mask.row["key"])
        data = mask.png()
        name = mask.name.removesuffix(".png") + ".tif"
        return name, geotiff.tiff(bands(data, geotiff.TILE), shape=shape_of(data), placement=placement)

    def finish(self) -> str:
        return f"{len(self._placed)} georeferenced"

    def _placement(self, mask: StoredMask) -> geotiff.Placement | None:
        """Read the placement of a mask's image; None if it has none, is gone, or has changed since."""
        record = file_of(Record(*(mask.row[name] for name in ("key", "url", "size", "etag"))))
        size = mask.row["height"], mask.row["width"]
        try:
            if is_member(record.url):
                return geotiff.placement(io.BytesIO(self.inputs.read(record)), *size, upright=mask.upright)
            ranged = self.inputs.files.ranged(record.url, record.etag)
            return geotiff.placement(io.BufferedReader(ranged, _HEADER), *size, upright=mask.upright)
        except (NotFound, Changed, Fault):
            return None


EXPORT = GeoTiffExport
