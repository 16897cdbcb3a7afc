"""Tar archives: a member's place is its offset and size, and its name is the one in the archive."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from maskfleet.jobs.inputs.containers import spans
from maskfleet.jobs.inputs.containers.contract import Container, Listing, Member, MemberReader, Reference
from maskfleet.jobs.inputs.containers.tar_headers import TarMember
from maskfleet.jobs.inputs.containers.tar_members import members
from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.ranged import RangedFile


class Tars(Container[TarMember]):
    """Tar archives, uncompressed."""

    endings = (".tar",)
    place = spans.PLACE
    faults = {  # noqa: RUF012  (a constant)
        "damaged_tar": (
            "no valid header here, or the tar ends too early, so members are missing; the rest is done, write it again"
        ),
        "too_many_members": "the tar has too many members to list, and those from here on are missing; split it",
        "long_name": "the member's name is longer than 4,096 characters; rename it",
        "unsafe_name": "the member's name points outside the folder (path traversal); rename it",
        "duplicate_name": (
            "an earlier member of the tar has this name, and which one is meant cannot be known; rename it"
        ),
        "link": "the member is a link to another file; write the tar with --dereference --hard-dereference",
        "sparse": "the member is stored sparse; write the tar without --sparse",
    }
    damage = ("damaged_tar", "too_many_members")
    index = pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("fault", pa.string()),
        ]
    )
    entry = TarMember

    def entries(self, file: RangedFile, listing: Listing) -> Iterator[TarMember]:
        return members(file.at, file.size(), listing.is_image)

    def member(self, entry: TarMember) -> Member:
        if entry.fault is None:
            return Member(entry.name, {"offset": str(entry.offset), "size": str(entry.size)}, entry.size)
        # A stretch of damage has no name. A duplicate and a shortened name need one of their own.
        name = {
            "damaged_tar": f"damaged@{entry.offset}",
            "too_many_members": f"more@{entry.offset}",
            "duplicate_name": f"{entry.name}@{entry.offset}",
            "long_name": f"{entry.name}@{entry.offset}",
        }
        place = {"offset": str(entry.offset)}
        return Member(name.get(entry.fault, entry.name), place, fault=entry.fault)

    def reader(self, files: Files, members: Sequence[Reference]) -> MemberReader:
        return spans.SpanReader(files, members, damaged="damaged_tar")
