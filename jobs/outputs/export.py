"""Committed masks in the forms that other programs take: loose PNG, VOC's palette PNG, COCO JSON, GeoTIFF.

Of each image its newest outcome over all runs counts, and only if it is a mask. An export reads commits alone,
can be made again at any time, and writes nothing into the output that it reads.
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import Changed, JobError, NotFound, StorageError
from maskfleet.jobs.inputs.containers.formats import is_member
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.ledger.commit import Commits
from maskfleet.jobs.ledger.keys import chosen
from maskfleet.jobs.ledger.shard_files import masks_of, rows_of
from maskfleet.jobs.masks import geotiff, run_lengths
from maskfleet.jobs.masks.formats import MaskFormat, mask_format
from maskfleet.jobs.masks.png import Encoder, bands, default_values, shape_of
from maskfleet.jobs.storage.contract import Fault, Storage
from maskfleet.jobs.storage.schemes import open_storage

Kind = Literal["png", "voc", "coco", "geotiff"]

_WRITES_IN_FLIGHT = 32
_HEADER = 2**16
"""Bytes of an image that are read at once for its tags."""

_VOC_CLASSES = 255
"""The palette's last entry is VOC's border, which is no class."""


@dataclass
class Exported:
    """What was written.

    Attributes:
        images: Masks.
        failed: Images whose newest outcome is a failure, which have none.
        placed: GeoTIFFs with the place or the resolution that their image states.
    """

    images: int = 0
    failed: int = 0
    placed: int = 0


class Mask(NamedTuple):
    """A mask and the row that describes it.

    Attributes:
        row: Of the statistics.
        values: Pixel value of each class.
        file: Its file in the shard's archive; None if its format has no archive.
        format: Format of the output's masks.
        upright: Whether it lies on the grid that EXIF orientation turns the image to.
    """

    row: dict[str, Any]
    values: tuple[Any, ...]
    file: bytes | None
    format: MaskFormat
    upright: bool = False

    @property
    def name(self) -> str:
        """Ends in .png."""
        return str(self.row["mask_member"])

    def png(self) -> bytes:
        """The mask as a PNG file."""
        return self.format.as_png(self.file) or Encoder(self.values).encode(self.classes())

    def classes(self) -> NDArray[np.uint8]:
        """The class map (H, W)."""
        return self.format.classes(self.row, self.file, self.values)

    def runs(self) -> run_lengths.Masks:
        """The masks of its classes as run lengths."""
        return self.format.as_run_lengths(self.row) or run_lengths.Encoder(len(self.values)).encode(self.classes())


def export(
    output: str,
    kind: Kind,
    destination: str,
    *,
    key: str | None = None,
    names: tuple[str, ...] = (),
    profile: str | None = None,
) -> Exported:
    """Write an output's masks in another form.

    Args:
        output: Of a job.
        kind: `png`: loose files. `voc`: SegmentationClass/ and labels.txt. `coco`: annotations.json, with one
            annotation per image and class. `geotiff`: TIFF, where the image lies as far as its own tags say so.
        destination: Folder or s3:// prefix outside the output.
        key: Any ending of one image's key that is unique; None for all images.
        names: Of the classes after the first; without it `class_1` and so on.
        profile: AWS profile.

    Raises:
        JobError: There is no run or no such key, or the masks cannot be had in this form.
        StorageError: A committed file is missing or damaged.
    """
    source = open_storage(output, profile=profile)
    target = open_storage(destination, profile=profile)
    if f"{target.root}/".startswith(f"{source.root}/"):
        raise JobError(f"{destination} lies within the output {output}; export to another place")
    done = Exported()
    only = None if key is None else _found(source, key)
    writers = _WRITERS | {"geotiff": partial(_geotiffs, inputs=Inputs(profile=profile), done=done)}
    with writers[kind](target, names) as write:
        for masks in _newest(source, only, done):
            write(masks)
            done.images += len(masks)
    return done


def _runs(storage: Storage) -> Iterator[tuple[dict[str, Any], Commits]]:
    """What each run's job.json says, and its commits; newest first."""
    found = False
    for run_id in reversed(storage.names("runs")):
        try:
            record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        except NotFound:
            continue
        found = True
        yield record, Commits(storage, run_id, record["commit_mode"])
    if not found:
        raise JobError(f"there is no run in {storage.root}; correct the path")


def _found(storage: Storage, ending: str) -> str:
    matching: dict[str, None] = {}
    for _, commits in _runs(storage):
        for commit in commits.all().values():
            if not commit.split:
                keys = rows_of(storage, commit)["key"]
                matching |= dict.fromkeys(keys.filter(pc.ends_with(keys, ending)).to_pylist())
    return chosen(ending, matching)


def _newest(storage: Storage, only: str | None, done: Exported) -> Iterator[list[Mask]]:
    """Shard by shard, the masks whose images no later run has looked at. Holds the keys of all images."""
    later = pa.array([], pa.string())
    for record, commits in _runs(storage):
        format_ = mask_format(record["job"].get("masks", {}).get("format", "png"))
        of_run = [later]
        for _, commit in sorted(commits.all().items()):
            if commit.split:
                continue
            table = rows_of(storage, commit)
            of_run.append(table["key"].combine_chunks())
            rows = table.filter(pc.invert(pc.is_in(table["key"], value_set=later)))
            if only is not None:
                rows = rows.filter(pc.equal(rows["key"], only))
            made = rows.filter(pc.equal(rows["status"], "ok"))
            done.failed += rows.num_rows - made.num_rows
            if made.num_rows:
                files = dict(masks_of(storage, commit, format_))
                yield [_mask(record, row, files, format_) for row in made.to_pylist()]
        later = pa.concat_arrays(of_run)


def _mask(record: dict[str, Any], row: dict[str, Any], files: dict[str, bytes], format_: MaskFormat) -> Mask:
    if not format_.stored:
        raise JobError(
            f"run {record['run_id']} made no masks (masks.format is 'none'); run the job with another masks.format"
        )
    file = files.get(row["mask_member"])
    if file is None and format_.archive is not None:
        raise StorageError(f"{row['mask_object']} has no mask {row['mask_member']}; run verify on this output")
    stated = record["job"].get("masks", {}).get("values") or record["weights"]["mask_values"]
    upright = record["job"].get("inference", {}).get("orientation") == "upright"
    return Mask(row, tuple(stated or default_values(len(row["class_pixels"]))), file, format_, upright)


# Forms -------------------------------------------------------------------------------------------

Write = Callable[[list[Mask]], None]


@contextmanager
def _pngs(target: Storage, names: tuple[str, ...]) -> Iterator[Write]:
    with _files(target, lambda mask: (mask.name, mask.png())) as write:
        yield write


@contextmanager
def _voc(target: Storage, names: tuple[str, ...]) -> Iterator[Write]:
    most = 0

    def form(mask: Mask) -> tuple[str, bytes]:
        nonlocal most
        most = max(most, len(mask.values))
        if len(mask.values) > _VOC_CLASSES:
            raise JobError(f"VOC masks have at most {_VOC_CLASSES} classes; export to coco")
        return f"SegmentationClass/{mask.name}", _palette_png(mask.classes())

    with _files(target, form) as write:
        yield write
    labels = "".join(f"{label}\n" for label in ("background", *(_name(names, number) for number in range(1, most))))
    target.write("labels.txt", labels.encode())


@contextmanager
def _coco(target: Storage, names: tuple[str, ...]) -> Iterator[Write]:
    """One annotation per image and class: a network of classes knows no instances."""
    with tempfile.TemporaryFile("w+", encoding="ascii") as annotations, tempfile.TemporaryFile("w+b") as whole:
        numbers = {"image": 0, "annotation": 0, "class": 1}
        whole.write(b'{"images": [')

        def write(masks: list[Mask]) -> None:
            for mask in masks:
                image = {name: mask.row[name] for name in ("width", "height")}
                image |= {"id": numbers["image"], "file_name": mask.row["key"], "url": mask.row["url"]}
                whole.write((",\n" * bool(numbers["image"]) + json.dumps(image)).encode())
                _annotate(annotations, mask, numbers)
                numbers["image"] += 1
                numbers["class"] = max(numbers["class"], len(mask.values))

        yield write
        categories = [{"id": number, "name": _name(names, number)} for number in range(1, numbers["class"])]
        whole.write(f'],\n"categories": {json.dumps(categories)},\n"annotations": ['.encode())
        annotations.seek(0)
        while piece := annotations.read(2**20):
            whole.write(piece.encode())
        whole.write(b"]}\n")
        whole.seek(0)
        target.write("annotations.json", whole.read())


def _annotate(file: IO[str], mask: Mask, numbers: dict[str, int]) -> None:
    for number, runs in enumerate(mask.runs()):
        if runs is None:
            continue
        annotation = {
            "id": numbers["annotation"] + 1,  # pycocotools takes 0 for none
            "image_id": numbers["image"],
            "category_id": number,
            "segmentation": runs,
            "area": mask.row["class_pixels"][number],
            "bbox": list(run_lengths.box_of(runs)),
            "iscrowd": 0,
        }
        file.write(",\n" * bool(numbers["annotation"]) + json.dumps(annotation))
        numbers["annotation"] += 1


@contextmanager
def _geotiffs(target: Storage, names: tuple[str, ...], *, inputs: Inputs, done: Exported) -> Iterator[Write]:
    placed: set[str] = set()

    def form(mask: Mask) -> tuple[str, bytes]:
        place = _place(mask, inputs)
        if place is not None:
            placed.add(mask.row["key"])
        data = mask.png()
        name = mask.name.removesuffix(".png") + ".tif"
        return name, geotiff.tiff(bands(data, geotiff.TILE), shape_of(data), place)

    with _files(target, form) as write:
        yield write
    done.placed = len(placed)
    inputs.close()


def _place(mask: Mask, inputs: Inputs) -> geotiff.Placement | None:
    """Of the image that the mask was made of; an image that is gone or another by now has none."""
    record = Record(*(mask.row[name] for name in ("key", "url", "size", "etag")))
    size = mask.row["height"], mask.row["width"]
    try:
        if is_member(record.url):
            return geotiff.placement(io.BytesIO(inputs.read(record)), *size, upright=mask.upright)
        ranged = inputs.files.ranged(record.url, record.etag)
        return geotiff.placement(io.BufferedReader(ranged, _HEADER), *size, upright=mask.upright)
    except (NotFound, Changed, Fault):
        return None


_WRITERS = {"png": _pngs, "voc": _voc, "coco": _coco}


@contextmanager
def _files(target: Storage, form: Callable[[Mask], tuple[str, bytes]]) -> Iterator[Write]:
    """A file per mask, so many at once."""
    with ThreadPoolExecutor(_WRITES_IN_FLIGHT) as pool:

        def write(masks: list[Mask]) -> None:
            for _ in pool.map(lambda mask: target.export(*form(mask)), masks):
                pass

        yield write


def _palette_png(classes: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(classes)
    image.putpalette(_voc_palette())  # makes indices of what were grey values
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _voc_palette() -> list[int]:
    """VOC's colours: the bits of a class's number, dealt to red, green and blue from the highest bit down."""
    colours = []
    for number in range(256):
        for channel in range(3):
            bits = [(number >> (3 * place + channel)) & 1 for place in range(8)]
            colours.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return colours


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number - 1] if number <= len(names) else f"class_{number}"
