"""A job's input as records: image files, and images inside containers. Reads no image.

A key is a path relative to a folder (`folders`), a line of a list (`lists`) or the key of an object (`inventories`).
Inside a container, it is the container's key and the member's name (`members`).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

import pyarrow as pa

from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.inputs.containers.contract import Listing
from maskfleet.jobs.inputs.containers.formats import container_of
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.inputs.kinds import InputKind, kind_of
from maskfleet.jobs.inputs.lists import REPEATED
from maskfleet.jobs.inputs.members import records_of
from maskfleet.jobs.inputs.prefetch import Prefetched
from maskfleet.jobs.inputs.record import Record, records, tables
from maskfleet.jobs.inputs.selector import EXCLUDED, Selector, is_image
from maskfleet.jobs.storage.contract import ENVIRONMENT, Fault, Options
from maskfleet.jobs.storage.files import Files

_CONTAINERS_AHEAD = 8
_ROWS_AHEAD = 8192


class Source:
    """A job's input.

    Args:
        location: Folder, glob, container, list or inventory; see `kinds.KINDS`.
        output: Output of the job, which may lie inside the input.
        column: Column of images or of URLs, in tables; None to find it.
        options: How buckets are asked.
        indexes: Indexes of containers listed before.
        exclude: Patterns of images to leave alone; see `selector.Exclusions`.

    Attributes:
        mean_bytes: Mean size of a member in bytes, by the URL of its file. Filled during iteration, for containers
            without the size of each member.
    """

    def __init__(
        self, location: str, *, output: str, column: str | None = None, options: Options = ENVIRONMENT,
        indexes: Indexes | None = None, exclude: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.mean_bytes: dict[str, float] = {}
        self._location, self._indexes = location, indexes
        self._files = Files(options)
        self._selector = Selector(self._files, output=output, column=column, exclude=exclude)

    @property
    def in_order(self) -> bool:
        """Whether records come in key order, so that the first are processed before the last are listed."""
        return self._kind.in_order(self._location)

    @property
    def left_alone(self) -> dict[str, int]:
        """Files left alone so far, counted by the rule, the most frequent first. Filled during iteration."""
        return self._selector.left_alone.counts

    def repeated(self) -> None:
        """Count a file that is listed a second time."""
        self._selector.left_alone.add(REPEATED)

    def unknown(self, key: str) -> None:
        """Note that the pages of a file are unknown tonight, so that none of them counts as missing."""
        self._selector.left_alone.unknown(key)

    def overlooked(self, keys: pa.ChunkedArray) -> pa.BooleanArray:
        """Return which keys prove nothing by their absence from the listing: excluded, or in a place not listed."""
        hides, exclusions = self._selector.left_alone.hides, self._selector.exclusions
        return pa.array([exclusions.match(key) or hides(key) for key in keys.to_pylist()], pa.bool_())

    def tables(self) -> Iterator[pa.Table]:
        """Yield each image once, as tables of `LISTED`, always in the same order.

        Raises:
            JobError: The input does not exist or cannot be used.
        """
        return self._unpacked(self._kind.files(self._location, self._selector))

    def __iter__(self) -> Iterator[Record]:
        """Yield the same images one by one, for small inputs."""
        for table in self.tables():
            yield from records(table)

    @cached_property
    def _kind(self) -> InputKind:
        return kind_of(self._location, self._selector)

    def _unpacked(self, files: Iterator[pa.Table | Record]) -> Iterator[pa.Table]:
        """Replace containers by their images. Several containers are listed ahead."""
        pending: deque[pa.Table | Prefetched[pa.Table]] = deque()
        running = rows = 0
        try:
            for item in files:
                if isinstance(item, Record):
                    pending.append(Prefetched(partial(self._images, item)))
                    running += 1
                else:
                    pending.append(item)
                    rows += item.num_rows
                while pending and (not running or running >= _CONTAINERS_AHEAD or rows > _ROWS_AHEAD):
                    first = pending.popleft()
                    if isinstance(first, Prefetched):
                        running -= 1
                        yield from first
                    else:
                        rows -= first.num_rows
                        yield first
            while pending:
                first = pending.popleft()
                yield from first if isinstance(first, Prefetched) else [first]
        finally:
            for item in pending:
                if isinstance(item, Prefetched):
                    item.close()

    def _images(self, container: Record) -> Iterator[pa.Table]:
        return tables(self._counted(self._members(container)))

    def _members(self, container: Record) -> Iterator[Record]:
        try:
            storage, path = self._files.found(container.url)
            if not container.size or container.etag is None:
                # An inventory may omit them, a dangling link has none, and a file read in ranges must be one version.
                entry = storage.entry(path)
                container = container._replace(size=entry.size, etag=entry.etag)
        except (NotFound, Fault):
            return iter([container])  # reading it raises the reason
        kind = container_of(container.url)
        assert kind is not None
        file = self._files.ranged(container.url, container.etag, container.size)
        report = partial(self.mean_bytes.__setitem__, container.url)
        listing = Listing(self._files, is_image, self._selector.column, report)
        return records_of(
            container, kind, file, listing=listing, indexes=self._indexes,
            left_alone=self._selector.left_alone, answers=partial(storage.answers, path), named=not self._kind.searches,
        )  # fmt: skip

    def _counted(self, images: Iterator[Record]) -> Iterator[Record]:
        """Count and drop excluded images."""
        exclusions = self._selector.exclusions
        for image in images:
            if exclusions and exclusions.match(image.key):
                self._selector.left_alone.add(EXCLUDED)
            else:
                yield image
