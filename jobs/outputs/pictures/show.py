"""`show`: one image with its mask and overlay, and contact sheets of failed and of least confident images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.ledger.runs import StoredRun, stored_run, stored_runs
from maskfleet.jobs.outputs.input_images import InputImages, Shown
from maskfleet.jobs.outputs.lookup import CommittedRow, newest_row, row_of_run
from maskfleet.jobs.outputs.overlay import class_colours, drawn, shrunk_mask
from maskfleet.jobs.outputs.pictures.layout import Entry, Tile, grid, side_by_side
from maskfleet.jobs.outputs.rows import newest_rows, rows_of_run
from maskfleet.jobs.outputs.stored_masks import StoredMask, stored_masks
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage

SIZE = 640
"""Default longest side of a picture in px."""

TILE = 224
"""Default longest side of a picture of a contact sheet in px."""

_MOST_CLASSES = 8
"""Classes named in a legend."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture, with what a person should know about it.

    Attributes:
        image: RGB image.
        lines: Sentences about it: the image and its numbers, or a line per image of a contact sheet.
        notices: What is missing in it, and why.
    """

    image: Image.Image
    lines: Sequence[str]
    notices: Sequence[str] = ()


def show(
    output: str, key: str, *, run_id: str | None = None, size: int = SIZE, profile: str | None = None
) -> Picture:  # fmt: skip
    """Draw an image, its mask, and the mask over the image, side by side.

    If the image is no longer in the input, the mask is drawn alone. If the image failed, it is drawn alone, if it can
    be decoded.

    Args:
        output: Folder or URL of the output.
        key: Key of the image, or a unique ending of it.
        run_id: Run whose mask is drawn; None for the newest.
        size: Longest side of each picture in px.
        profile: AWS profile.

    Raises:
        JobError: There is no such output, run or image, or neither an image nor a mask.
        StorageError: A committed file is missing or damaged.
    """
    storage = open_storage(output, profile=profile)
    newest = _newest_run(storage, output)
    found = newest_row(storage, key) if run_id is None else _row_of(storage, output, run_id, key)
    row = found.row
    with InputImages(newest, profile=profile, upright=found.run.upright) as images:
        shown = images.read(row, size=size)
    if row["status"] == "failed":
        return _failed(shown, row, size)
    (mask,) = stored_masks(storage, found.run, found.commit, [row])
    return _beside(shown, mask, found.run.run_id, size)


def _failed(shown: Shown, row: Mapping[str, Any], size: int) -> Picture:
    reason = f"{row['stage']} failed: {row['error_message']}"
    if shown.pixels is None:
        raise JobError(f"{row['key']} has no mask ({reason}), and the image cannot be shown ({shown.reason})")
    picture = drawn(shown.pixels, None, (), size=size)
    image = side_by_side([("image", picture)], title=row["key"], caption=f"no mask: {reason}")
    return Picture(image=image, lines=[f"{row['key']}: no mask, {reason}"])


def _beside(shown: Shown, mask: StoredMask, run_id: str, size: int) -> Picture:
    row, colours = mask.row, class_colours(mask.values)
    labels = shrunk_mask(mask.class_bands(), (row["height"], row["width"]), size)
    notices = []
    panels = [("mask", drawn(None, labels, colours, size=size))]
    if shown.pixels is None:
        notices.append(f"the mask alone: {shown.reason}")
    elif shown.pixels.shape[:2] != labels[0].shape:
        raise JobError(f"the image of {row['key']} no longer has the size of its mask; run the job again")
    else:
        image = drawn(shown.pixels, None, (), size=size)
        panels = [("image", image), *panels, ("overlay", drawn(shown.pixels, labels, colours, size=size))]
    facts = f"{row['width']}×{row['height']} px, mean confidence {row['mean_confidence']:.3f}, run {run_id}"
    legend = [Entry(colours[number], f"class {number}: {share:.1%}") for number, share in _shares(row)]
    picture = side_by_side(panels, title=row["key"], caption="; ".join([facts, *notices]), legend=legend)
    return Picture(image=picture, lines=[f"{row['key']}: {_summary(row)}, run {run_id}"], notices=notices)


def least_confident(
    output: str, count: int, *, run_id: str | None = None, size: int = TILE, profile: str | None = None
) -> Picture:  # fmt: skip
    """Draw a contact sheet of the images with the least mean confidence, the least first.

    Args:
        output: Folder or URL of the output.
        count: Number of images.
        run_id: Run; None for the newest outcome of each image.
        size: Longest side of each picture in px.
        profile: AWS profile.

    Raises:
        JobError: There is no such output or run, or no image has a mask.
        StorageError: A committed file is missing or damaged.
    """
    storage = open_storage(output, profile=profile)
    newest = _newest_run(storage, output)
    best: pa.Table | None = None
    for table in _rows(storage, output, run_id, ["key", "status", "mean_confidence"]):
        done = table.filter(pc.equal(table["status"], "ok"))
        best = (done if best is None else pa.concat_tables([best, done])).sort_by("mean_confidence").slice(0, count)
    if best is None or not best.num_rows:
        raise JobError(f"no image in {_place(output, run_id)} has a mask")
    keys = best["key"].to_pylist()
    found = [newest_row(storage, key) if run_id is None else _row_of(storage, output, run_id, key) for key in keys]
    tiles = list(_overlays(storage, newest, found, size=size, profile=profile))
    lines = [f"{each.row['key']}: {_summary(each.row)}" for each in found]
    title = f"{len(tiles)} least confident of {_place(output, run_id)}"
    return Picture(image=grid(tiles, title=title, size=size), lines=lines)


def _overlays(
    storage: Storage, newest: StoredRun, found: Sequence[CommittedRow], *, size: int, profile: str | None
) -> Iterator[Tile]:  # fmt: skip
    for each in found:  # a reader for each: runs differ in orientation, and sheets are small
        with InputImages(newest, profile=profile, upright=each.run.upright) as images:
            shown = images.read(each.row, size=size)
        (mask,) = stored_masks(storage, each.run, each.commit, [each.row])
        labels = shrunk_mask(mask.class_bands(), (each.row["height"], each.row["width"]), size)
        fits = shown.pixels is not None and shown.pixels.shape[:2] == labels[0].shape
        picture = drawn(shown.pixels if fits else None, labels, class_colours(mask.values), size=size)
        note = "" if fits else f"; mask alone, {shown.reason or 'the image has another size now'}"
        yield Tile(picture, each.row["key"], _summary(each.row) + note)


def failed(
    output: str, count: int, *, run_id: str | None = None, size: int = TILE, profile: str | None = None
) -> Picture | None:  # fmt: skip
    """Draw a contact sheet of failed images with their reasons. Every class of errors is represented.

    Args:
        output: Folder or URL of the output.
        count: Number of images, at most.
        run_id: Run; None for the newest outcome of each image.
        size: Longest side of each picture in px.
        profile: AWS profile.

    Returns:
        The sheet; None if no image failed.

    Raises:
        JobError: There is no such output or run.
        StorageError: A committed file is missing or damaged.
    """
    storage = open_storage(output, profile=profile)
    newest = _newest_run(storage, output)
    kept: dict[str, list[dict[str, Any]]] = {}
    total = 0
    for table in _rows(storage, output, run_id, None):
        failures = table.filter(pc.equal(table["status"], "failed"))
        total += failures.num_rows
        for name in failures["error_class"].unique().to_pylist():
            examples = kept.setdefault(name, [])
            of_class = failures.filter(pc.equal(failures["error_class"], name))
            examples += of_class.slice(0, count - len(examples)).to_pylist()
    if not total:
        return None
    in_turn = chain.from_iterable(zip_longest(*kept.values()))
    rows = [row for row in in_turn if row is not None][:count]
    with InputImages(newest, profile=profile) as images:
        tiles = [
            Tile(
                None if shown.pixels is None else drawn(shown.pixels, None, (), size=size),
                shown.row["key"],
                f"{shown.row['error_class']}: {shown.row['error_message']}",
            )
            for shown in images.images(rows, size=size)
        ]
    lines = [f"{row['key']}: {row['error_class']}: {row['error_message']}" for row in rows]
    title = f"{len(rows)} of {total} failed image{'' if total == 1 else 's'} in {_place(output, run_id)}"
    return Picture(image=grid(tiles, title=title, size=size), lines=[*lines, title])


def _newest_run(storage: Storage, output: str) -> StoredRun:
    newest = next(stored_runs(storage, newest_first=True), None)
    if newest is None:
        raise JobError(f"there is no run in {output}; correct the path")
    return newest


def _rows(storage: Storage, output: str, run_id: str | None, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    if run_id is None:
        return newest_rows(storage, columns)
    _run_of(storage, output, run_id)
    return rows_of_run(storage, run_id)


def _row_of(storage: Storage, output: str, run_id: str, key: str) -> CommittedRow:
    return row_of_run(storage, _run_of(storage, output, run_id), key)


def _run_of(storage: Storage, output: str, run_id: str) -> StoredRun:
    try:
        return stored_run(storage, run_id)
    except NotFound:
        raise JobError(f"there is no run {run_id} in {output}; maskfleet list {output} shows its runs") from None


def _place(output: str, run_id: str | None) -> str:
    return output if run_id is None else f"run {run_id} of {output}"


def _summary(row: Mapping[str, Any]) -> str:
    shares = ", ".join(f"class {number}: {share:.1%}" for number, share in _shares(row))
    return f"confidence {row['mean_confidence']:.3f}{', ' if shares else ', background only'}{shares}"


def _shares(row: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return the classes of an image besides the background with their shares, the largest first."""
    present = [(number, share) for number, share in enumerate(row["class_fraction"]) if number and share]
    return sorted(present, key=lambda each: -each[1])[:_MOST_CLASSES]
