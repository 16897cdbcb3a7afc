"""Loose PNG files, named after their images."""

from maskfleet.jobs.outputs.exports.contract import FileExport
from maskfleet.jobs.outputs.stored_masks import StoredMask


class PngExport(FileExport):
    """One PNG file per mask, with the pixel values of the run."""

    def file(self, mask: StoredMask) -> tuple[str, bytes]:
        return mask.name, mask.png()


EXPORT = PngExport
