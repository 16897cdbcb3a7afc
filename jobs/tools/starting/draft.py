"""The text of a first job file: the keys a new user needs, each with a comment, and what the look found."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from maskfleet.jobs.job.json_schema import DIRECTIVE
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.starting.look import Kind, Look
from maskfleet.unet.checkpoints.pytorch_unet import ORIGIN
from maskfleet.unet.weights import BUILTIN, Weights

_MANY = 100_000
"""Images from which on one file for each mask becomes a burden."""

_SIMILAR = 32
"""Difference of mask values below which a mask looks black."""

_VISIBLE = 9
"""Largest number of classes that grey values tell apart."""

_COLUMN = 34


def draft(given: Job, found: Look, weights: Weights, *, places: tuple[str, str, str]) -> tuple[str, list[str]]:
    """Return a job file, and notes on what may need a decision.

    Args:
        given: Job of the places alone.
        found: The look at its input.
        weights: Its weights.
        places: Input, output and weights as the user wrote them.
    """
    notes = list(_notes(given, found, weights))
    lines = [
        DIRECTIVE,
        "# A job for maskfleet: what to do. `maskfleet plan` shows what it would do, `maskfleet run` does it.",
        "# Keys with a # keep their default. All keys: docs/job-file.md, or `maskfleet schema`.",
        "#",
        *(f"# {line}" for line in _summary(found)),
        *(f"# Note: {note}" for note in notes),
        "",
        *_top(found, weights, places),
        "",
        "[inference]",
        *_inference(weights),
        "",
        "[masks]",
        _key(
            "format", "tar" if found.images >= _MANY else "png", "png: one file per image; or tar, parquet, rle, none"
        ),
        _values(weights),
        "",
        "[run]",
        _key("max_error_rate", 0.01, "share of failed images above which a run is incomplete"),
        *_largest(given, found),
        _key("# deadline", "6h", "no further work starts after this time; the next run resumes"),
        *_pairs(found, places[0]),
        "",
        "# [schedule]                      # every night: maskfleet schedule",
        '# cron     = "30 2 * * *"          # minute hour day month weekday',
        '# timezone = "Europe/Berlin"',
    ]
    return "\n".join(lines) + "\n", notes


def _summary(found: Look) -> Iterator[str]:
    endings = ", ".join(f"{count} {ending}" for ending, count in found.endings.items())
    count = f"more than {found.images}" if found.more else str(found.images)
    yield f"Found: {count} {'image' if found.images == 1 else 'images'} ({endings})" + (
        f", and {found.masks} masks." if found.masks else "."
    )
    read = [kind for kind in found.sample if not kind.problem]
    if read:
        kinds = Counter(_described(kind) for kind in read)
        yield f"Sample: {', '.join(f'{count} × {kind}' for kind, count in kinds.most_common())}; {_sizes(read)}."


def _described(kind: Kind) -> str:
    bands = {None: "", 1: " grey", 3: " colour", 4: " colour and alpha"}.get(kind.bands, f" {kind.bands} bands")
    bits = {None: "", "float": ", floats", "1": ", 1 bit"}.get(kind.bits, f", {kind.bits} bits")
    return f"{kind.format}{bands}{bits}"


def _sizes(read: Sequence[Kind]) -> str:
    smallest = min(read, key=lambda kind: kind.width * kind.height)
    largest = max(read, key=lambda kind: kind.width * kind.height)
    if (smallest.width, smallest.height) == (largest.width, largest.height):
        return f"{largest.width} × {largest.height} px"
    return f"{smallest.width} × {smallest.height} to {largest.width} × {largest.height} px"


def _notes(given: Job, found: Look, weights: Weights) -> Iterator[str]:
    channels = weights.model.n_channels
    read = [kind for kind in found.sample if not kind.problem]
    bands = {kind.bands for kind in read if kind.bands is not None}
    if not found.images:
        yield "the input holds no images yet; check it before the first run"
    if found.mask_patterns:
        yield f"files matching {', '.join(found.mask_patterns)} are taken for masks and excluded"
    if bands and channels not in (1, 3) and channels not in bands:
        yield f"the weights take {channels} channels, the images have {_listed(bands)}; use other weights or images"
    if channels in (1, 3) and any(number > 3 for number in bands):
        yield f"the weights take {channels} channels; alpha, and bands after the colours, are dropped"
    if channels == 1 and bands - {1}:
        yield "the weights take 1 channel; the network sees the luminance of colour images"
    if stacks := _stacks(found):
        yield f'{stacks[0].key} holds {stacks[0].pages} pages, so pages = "each" makes a mask of each'
    if wide := {kind.bits for kind in read if kind.bits not in (None, "1", "8")}:
        yield f"the images have {_listed(wide)} bits; docs/images.md says how they reach the network"
    if broken := [kind for kind in found.sample if kind.problem]:
        yield f"{len(broken)} of {len(found.sample)} sampled images cannot be read, such as {broken[0].key}"
    if weights.metadata.get("origin") == ORIGIN and "scale" not in weights.metadata:
        yield "the weights do not record their training scale; Pytorch-UNet's default is 0.5: check inference.scale"


def _stacks(found: Look) -> list[Kind]:
    return [kind for kind in found.sample if kind.pages > 1]


def _listed(values: set[Any]) -> str:
    return " and ".join(sorted(map(str, values)))


def _top(found: Look, weights: Weights, places: tuple[str, str, str]) -> Iterator[str]:
    input_, output, name = places
    n_classes = weights.model.n_classes
    network = f"{weights.model.n_channels} channels, {n_classes} {'class' if n_classes == 1 else 'classes'}"
    yield _key("name", _name(input_), "in records and reports")
    yield _key("input", input_, "folder, glob, tar, Parquet, list or S3 Inventory; local or s3://")
    if found.mask_patterns:
        yield _key("exclude", list(found.mask_patterns), "masks beside the images")
    if _stacks(found):
        yield _key("pages", "each", "each page has a row and a mask; or first, refuse")
    yield _key("output", output, "masks, statistics and records; local or s3://")
    yield _key("weights", name, f"{'built-in model' if name in BUILTIN else 'network'}: {network}")


def _inference(weights: Weights) -> Iterator[str]:
    scale = weights.metadata.get("scale")
    if scale is not None:
        yield _key("scale", float(scale), "resize factor before the network; recorded in the weights")
    else:
        yield _key("scale", 1.0, "resize factor before the network; the one used in training")
    yield _key("precision", "auto", "fastest on this device with the classes of fp32; or fp32, bf16, fp16")


def _values(weights: Weights) -> str:
    classes = max(2, weights.model.n_classes)
    values = list(weights.mask_values or ([0, 255] if classes == 2 else range(classes)))
    if all(isinstance(value, int) for value in values) and max(values) - min(values) < _SIMILAR and classes <= _VISIBLE:
        spread = [round(255 * number / (classes - 1)) for number in range(classes)]
        return _key("values", spread, f"pixel value of each class in a mask; {values} would look black")
    return _key("# values", values, "pixel value of each class in a mask")


def _largest(given: Job, found: Look) -> Iterator[str]:
    largest = max((kind.width * kind.height for kind in found.sample), default=0)
    if largest > given.run.max_image_pixels:
        yield _key("max_image_pixels", 2 * largest, "the default would refuse the largest image of the sample")


def _pairs(found: Look, input_: str) -> Iterator[str]:
    """Yield a section for training on the masks that were found, as comments."""
    if found.pairs is None:
        return
    images, masks = (_joined(input_, place) for place in found.pairs[:2])
    yield from ("", "# [finetune]                      # train on the masks that were found: maskfleet finetune")
    yield f"# images    = {_toml(images)}"
    yield f"# masks     = {_toml(masks)}"
    if found.pairs.mask_name != "{stem}":
        yield f"# mask_name = {_toml(found.pairs.mask_name)}"
        yield '# unpaired  = "skip"               # images and masks share a folder'


def _joined(place: str, below: str) -> str:
    """Return a place below or beside another one."""
    if "://" in place:
        return f"{place.rstrip('/')}/{below}".rstrip("/")
    return os.path.normpath(os.path.join(place, below))


def _name(place: str) -> str:
    last = os.path.basename(os.path.abspath(place) if "://" not in place else place.rstrip("/"))
    plain = "".join(sign if (sign.isascii() and sign.isalnum()) or sign in "._-" else "-" for sign in last)
    return plain.strip("._-")[:63] or "maskfleet"


def _key(name: str, value: Any, comment: str) -> str:
    return f"{f'{name} = {_toml(value)}':<{_COLUMN}} # {comment}"


def _toml(value: Any) -> str:
    """Return a value as TOML; JSON has the same form for text, numbers and lists."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
