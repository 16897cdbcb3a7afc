"""A container of the tests: a line of JSON with name, offset and size of each member, then the members' bytes."""

import json
from typing import NamedTuple

from maskfleet.jobs.inputs.containers import spans
from maskfleet.jobs.inputs.containers.contract import Container, Member


class Entry(NamedTuple):
    name: str
    offset: int
    size: int


class Bundles(Container[Entry]):
    endings = (".bundle",)
    place = spans.PLACE
    faults = {"damaged_bundle": "the bundle ends too early; write it again"}  # noqa: RUF012
    entry = Entry

    def entries(self, file, listing):
        head = file.at(0, min(file.size(), 65536)).partition(b"\n")[0]
        for name, offset, size in json.loads(head):
            if listing.is_image(name):
                yield Entry(name, len(head) + 1 + offset, size)

    def member(self, entry):
        return Member(entry.name, {"offset": str(entry.offset), "size": str(entry.size)}, entry.size)

    def reader(self, files, members):
        return spans.SpanReader(files, members, damaged="damaged_bundle")
