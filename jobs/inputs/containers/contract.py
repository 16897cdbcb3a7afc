"""The container contract: listing a file of many images, and reading its members. Knows nothing of records.

A new container is one module with a subclass of `Container` and one line in `formats.CONTAINERS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import pyarrow as pa

from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.ranged import RangedFile

E = TypeVar("E")
"""A container's own entry, a named tuple. Its fields are the columns of the index, if the container keeps one."""


class MemberUrl(NamedTuple):
    """URL of an image inside a file: `x.tar#offset=512&size=9000`, `x.parquet#row=17&column=image.bytes`.

    The fragment gives the place of the image, so that reading it needs no index.

    Attributes:
        file: URL of the file.
        place: Position in the file, by name.
    """

    file: str
    place: Mapping[str, str]

    @property
    def url(self) -> str:
        """The URL as text."""
        return f"{self.file}#" + "&".join(f"{name}={quote(value, safe='.@')}" for name, value in self.place.items())


class Member(NamedTuple):
    """One image of a container.

    Attributes:
        name: Name within the file, distinct there. It becomes the end of the image's key.
        place: Position in the file, by name, in the form of `Container.place`. If unusable, empty or an `offset`.
        size: Size in bytes, or None if unknown before reading.
        fault: Key of `Container.faults` if the image is unusable, else None.
    """

    name: str
    place: Mapping[str, str]
    size: int | None = None
    fault: str | None = None


class Reference(NamedTuple):
    """A member to read.

    Attributes:
        key: Key of its record, distinct within a shard.
        file: URL of the file.
        etag: ETag that the file must still have, or None for any.
        place: Position in the file, by name.
    """

    key: str
    file: str
    etag: str | None
    place: Mapping[str, str]


@dataclass(frozen=True)
class Listing:
    """Settings of a job for listing a container.

    Attributes:
        files: Opens files by URL.
        is_image: Returns whether a name has the ending of an image.
        column: Column of the images, for tables; None to find it.
        report_mean: Receives the mean size of a member in bytes, from containers without the size of each.
    """

    files: Files
    is_image: Callable[[str], bool]
    column: str | None = None
    report_mean: Callable[[float], None] = lambda _: None


class MemberReader(ABC):
    """Reader of members of one kind of container.

    Each member is read once, about in the given order. Safe from several threads.
    """

    @abstractmethod
    def read(self, member: Reference) -> bytes:
        """Return the bytes of a member.

        Raises:
            NotFound: The file does not exist.
            Changed: The file has another ETag.
            Fault: The member is damaged or missing.
            StorageError: Storage failed.
        """

    def pieces(self, member: Reference) -> Iterator[bytes]:
        """Yield the bytes in pieces, for a member larger than memory. Raises as `read`."""
        yield self.read(member)


class Container(ABC, Generic[E]):
    """A kind of file with many images.

    Attributes:
        endings: File name endings in lower case, with the dot. Names match in any case.
        place: Regular expression for the fragment of a member's URL.
        faults: Error classes, each with an explanation and the remedy. All are final: the same bytes give them again.
        damage: Error classes of a row that stands for images nobody can count. A run with such a row is incomplete.
        in_order: Whether entries come in order of member name. If not, they are sorted in memory.
        index: Schema of entries kept in the output, so that the next run need not list an unchanged file; None if
            listing is cheap.
        entry: Type of an entry, built from the columns of `index`.
    """

    endings: ClassVar[tuple[str, ...]]
    place: ClassVar[str]
    faults: ClassVar[Mapping[str, str]]
    damage: ClassVar[tuple[str, ...]] = ()
    in_order: ClassVar[bool] = False
    index: ClassVar[pa.Schema | None] = None
    entry: Callable[..., E]

    @abstractmethod
    def entries(self, file: RangedFile, listing: Listing) -> Iterator[E]:
        """List the images of a file, in the file's order.

        Raises:
            Fault: The file as a whole is unusable. Entries before it remain valid.
            NotFound: The file does not exist.
            Changed: The file has another ETag.
        """

    @abstractmethod
    def member(self, entry: E) -> Member:
        """Convert an entry to a member."""

    @abstractmethod
    def reader(self, files: Files, members: Sequence[Reference]) -> MemberReader:
        """Return a reader for the members of a shard.

        Args:
            files: Opens files by URL.
            members: Members of any number of files, about in the order of reading.
        """
