"""Masks as COCO JSON: `annotations.json`, with one annotation per image and class, as run lengths.

A semantic segmentation network knows no instances, so `iscrowd` is 0 and each class of an image is one annotation.
"""

import json
import tempfile
from collections.abc import Sequence

from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.masks import run_lengths
from maskfleet.jobs.outputs.exports.contract import Export
from maskfleet.jobs.outputs.stored_masks import StoredMask
from maskfleet.jobs.storage.contract import Storage

_COPIED_AT_ONCE = 2**20


class CocoExport(Export):
    """One JSON file, assembled on the local disk."""

    def __init__(self, target: Storage, *, class_names: Sequence[str], inputs: Inputs) -> None:
        super().__init__(target, class_names=class_names, inputs=inputs)
        self._images = self._annotations = 0
        self._classes = 1
        self._annotation_file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115  (closed in `close`)
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115  (likewise)
        self._file.write(b'{"images": [')

    def write(self, masks: Sequence[StoredMask]) -> None:
        for mask in masks:
            image = {name: mask.row[name] for name in ("width", "height")}
            image |= {"id": self._images, "file_name": mask.row["key"], "url": mask.row["url"]}
            self._file.write((",\n" * bool(self._images) + json.dumps(image)).encode())
            for number, lengths in enumerate(mask.run_lengths()):
                if lengths is not None:
                    self._annotate(mask, number, lengths)
            self._images += 1
            self._classes = max(self._classes, len(mask.values))

    def finish(self) -> str:
        categories = [{"id": number, "name": self.class_name(number)} for number in range(1, self._classes)]
        self._file.write(f'],\n"categories": {json.dumps(categories)},\n"annotations": ['.encode())
        self._annotation_file.seek(0)
        while piece := self._annotation_file.read(_COPIED_AT_ONCE):
            self._file.write(piece.encode())
        self._file.write(b"]}\n")
        self._file.seek(0)
        self.target.write("annotations.json", self._file.read())
        return ""

    def close(self) -> None:
        self._annotation_file.close()
        self._file.close()

    def _annotate(self, mask: StoredMask, number: int, lengths: run_lengths.RunLengths) -> None:
        annotation = {
            "id": self._annotations + 1,  # pycocotools takes 0 for no annotation
            "image_id": self._images,
            "category_id": number,
            "segmentation": lengths,
            "area": mask.row["class_pixels"][number],
            "bbox": list(run_lengths.box_of(lengths)),
            "iscrowd": 0,
        }
        self._annotation_file.write(",\n" * bool(self._annotations) + json.dumps(annotation))
        self._annotations += 1


EXPORT = CocoExport
