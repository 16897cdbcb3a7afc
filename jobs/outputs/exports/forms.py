"""The table of export forms. A form is one module and one line of `EXPORTS`. Forms are imported on first use."""

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from maskfleet.jobs.outputs.exports.contract import Export


class Form(NamedTuple):
    """A form of export.

    Attributes:
        module: Module with a subclass of `jobs.outputs.exports.contract.Export` named `EXPORT`.
        label: Description in a few words, for help texts.
    """

    module: str
    label: str

    @property
    def export(self) -> "type[Export]":
        """Import and return the implementation."""
        found: type[Export] = importlib.import_module(self.module).EXPORT
        return found


EXPORTS = {
    "png": Form("maskfleet.jobs.outputs.exports.png", "one PNG per image"),
    "voc": Form("maskfleet.jobs.outputs.exports.voc", "palette PNGs in Pascal VOC layout"),
    "coco": Form("maskfleet.jobs.outputs.exports.coco", "one COCO JSON file"),
    "geotiff": Form("maskfleet.jobs.outputs.exports.geotiff", "one GeoTIFF per image"),
}
"""Forms of export by name."""
