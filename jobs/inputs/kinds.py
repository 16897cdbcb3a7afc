"""The table of inputs: what a job's `input` may be."""

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from maskfleet.jobs.inputs.folders import Folders, Globs
from maskfleet.jobs.inputs.inventories import Inventories
from maskfleet.jobs.inputs.lists import SingleFiles
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.selector import Selector


class InputKind(Protocol):
    """A kind of input. A new one is one module with such a class and one line in `KINDS`."""

    @property
    def searches(self) -> bool:
        """Whether its files are found by a search. If not, each is named, and a useless one is a failed row."""

    def claims(self, location: str, selector: Selector) -> bool:
        """Return whether the location is of this kind, by its form. Asks storage only about wildcards."""

    def in_order(self, location: str) -> bool:
        """Return whether records come in key order, so that the first are processed before the last are listed."""

    def files(self, location: str, selector: Selector) -> Iterator[pa.Table | Record]:
        """Yield the input's files in order: images as tables of `LISTED`, each container as a record.

        Raises:
            JobError: The input does not exist or cannot be used.
        """


KINDS: tuple[InputKind, ...] = (
    Globs(),
    Inventories(),
    SingleFiles(),
    Folders(),
)
"""All kinds of inputs. The first to claim a location has it."""


def kind_of(location: str, selector: Selector) -> InputKind:
    """Return the kind of input at a location."""
    return next(kind for kind in KINDS if kind.claims(location, selector))
