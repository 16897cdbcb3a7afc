"""A look at an input: how many images, of which kinds, and which of them are masks. Writes nothing.

Headers and pixels are read in an isolated process, as in a run.
"""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.inputs.fetch import Inputs, options_of
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.selector import Exclusions
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.isolation.process import DidNotStart, Died, Isolated
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.starting.mask_files import MaskFiles, Pairs, folder_beside

_LISTED = 20_000
"""Images listed at most: a first look at a bucket takes seconds."""

_SAMPLED = 16
_SAMPLED_BYTES = 64 * 2**20
_MEMORY = 2 * 2**30
_SECONDS = 30.0
_PROGRAM = "maskfleet.jobs.tools.starting.headers"


@dataclass(frozen=True)
class Kind:
    """An image of the sample.

    Attributes:
        key: Key of the image.
        problem: Reason for not reading it, or "".
        format: Name of its format.
        width: Width in px.
        height: Height in px.
        pages: Independent images in the file.
        bands: Bands of a pixel; None for images too large for a first look.
        bits: "1", "8", "16", "32" or "float"; None likewise.
    """

    key: str
    problem: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    pages: int = 1
    bands: int | None = None
    bits: str | None = None


@dataclass(frozen=True)
class Look:
    """What an input holds.

    Attributes:
        images: Number of images, masks beside them not included.
        more: Whether listing stopped before the end.
        endings: Number of images by ending, the most frequent first.
        masks: Number of masks among the files.
        mask_patterns: Patterns of `exclude` matching these masks.
        pairs: How masks belong to the images; None if there are none, or it is unknown.
        sample: A few images.
    """

    images: int
    more: bool
    endings: dict[str, int]
    masks: int
    mask_patterns: tuple[str, ...]
    pairs: Pairs | None
    sample: tuple[Kind, ...]


def look(job: Job) -> Look:
    """Return what the input of a job holds, from the first 20,000 images and a sample of 16.

    Args:
        job: A job; its input, output and credentials are used.

    Raises:
        JobError: The input does not exist or cannot be used.
        StorageError: Storage keeps failing.
    """
    source = Source(job.input, output=job.output, column=job.column, options=options_of(job), exclude=job.exclude)
    listed: list[Record] = []
    for record in source:
        listed.append(record)
        if len(listed) > _LISTED:
            break
    masks = MaskFiles.among([record.key for record in listed])
    excluded = Exclusions(masks.patterns)
    images = [record for record in listed if not excluded.match(record.key)]
    beside = "" if "://" in job.input or masks.pairs else folder_beside(job.input)
    return Look(
        images=min(len(images), _LISTED),
        more=len(listed) > _LISTED,
        endings=dict(Counter(os.path.splitext(record.key)[1].lower() for record in images).most_common()),
        masks=len(listed) - len(images),
        mask_patterns=masks.patterns,
        pairs=Pairs("", f"../{beside}", "{stem}") if beside else masks.pairs,
        sample=tuple(_sampled(job, images)),
    )


def _sampled(job: Job, images: Sequence[Record]) -> list[Kind]:
    """Return the kinds of a few images from all over the input."""
    if not images:
        return []
    chosen = images[:: -(-len(images) // _SAMPLED)]
    small = [record for record in chosen if record.size is None or record.size <= _SAMPLED_BYTES]
    inputs = Inputs(options_of(job))
    with ExitStack() as stack:
        opened: list[tuple[Record, int]] = []
        kinds = []
        for record in small:
            try:
                opened.append((record, stack.enter_context(inputs.opened(record)).fileno()))
            except MaskfleetError as error:
                kinds.append(Kind(record.key, str(error)))
        return kinds + _asked(opened)


def _asked(opened: Sequence[tuple[Record, int]]) -> list[Kind]:
    """Ask an isolated process about each file. A file that kills it costs one process."""
    kinds: list[Kind] = []
    while len(kinds) < len(opened):
        descriptors = [descriptor for _, descriptor in opened]
        try:
            process = Isolated(_PROGRAM, {}, memory=_MEMORY, seconds=_SECONDS, descriptors=descriptors)
        except DidNotStart as error:
            raise MaskfleetError(
                f"a process for reading images failed to start ({error}); check that maskfleet is installed for this "
                "interpreter"
            ) from error
        try:
            for record, descriptor in opened[len(kinds) :]:
                answer: dict[str, Any] = process.ask(descriptor)
                kinds.append(Kind(record.key, **answer))
        except Died as death:
            kinds.append(Kind(opened[len(kinds)][0].key, f"{death}"))
        finally:
            process.stop()
    return kinds
