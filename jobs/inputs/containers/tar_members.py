"""The members of a tar archive, from its headers alone, also beyond damage. Extracts nothing and keeps no data.

An end mark is believed if nothing but zeros follows. Behind it, or behind damage, the next valid header is looked for:
archives may be concatenated, and a download may have holes. Each stretch that cannot be read is a member with a fault.
`tarfile` is not used: it stops silently at a damaged header in the middle, and takes twice as long (17 µs per member).
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

from maskfleet.jobs.inputs.containers.tar_headers import BLOCK, CutOff, Damaged, TarMember, Window, entry_at, header

_LONGEST_END = 2**20
"""Largest number of zeros that an end mark and its padding may have. A writer pads to its record: 10 KiB in most, 1 MiB
on tapes. A longer hole before further members means that data is missing."""

_MOST_ENTRIES = 2**22
_MOST_CHARACTERS = 2**30
"""Largest number of entries, and of characters in their names: they are sorted in memory."""

_MOST_SEARCHED = 2**34
"""Bytes read in search of headers, in all. The rest of the archive then counts as lost."""

_STRETCHES = ("damaged_tar", "too_many_members")
"""Faults of a stretch of the archive, whose members are unknown."""

_MAGIC = b"ustar"
_MAGIC_PLACE = 257


def members(read: Callable[[int, int], bytes], size: int, wanted: Callable[[str], bool]) -> Iterator[TarMember]:
    """List the wanted files in the archive's order.

    A stretch without a valid header is listed as one member with a fault, and so is an empty archive file.

    Args:
        read: Returns bytes, given an offset and a length; fewer only at the end of the archive.
        size: Size of the archive in bytes.
        wanted: Returns whether a name is wanted.
    """
    seen: set[str] = set()
    held = 0
    for found in _entries(Window(read), size):
        if found.fault in _STRETCHES:
            yield found
        elif found.name and wanted(found.name):
            # A key is made of the name, so a later one needs another fault, whatever else is wrong with it.
            again = found.name in seen and found.fault != "long_name"
            yield found._replace(fault="duplicate_name") if again else found
            seen.add(found.name)
            held += len(found.name)
            if held > _MOST_CHARACTERS:
                yield _stretch(found.offset, "too_many_members")
                return


def _entries(window: Window, size: int) -> Iterator[TarMember]:
    """Yield all entries, and a faulty one for each stretch that cannot be read."""
    search = _Search(window, size)
    offset, count = 0, 0
    if not size:
        yield _stretch(0)
    while offset < size:
        count += 1
        if count > _MOST_ENTRIES:
            yield _stretch(offset, "too_many_members")
            return
        try:
            found, following = entry_at(window, offset, size)
        except CutOff:
            yield _stretch(offset)
            return
        except Damaged:
            yield _stretch(offset)
            offset = search.header_from(offset + BLOCK)
            continue
        if found is None:
            zeros, following = following, search.behind_zeros(following)
            hole = following - zeros > _LONGEST_END
            if following >= size:
                lost = search.gave_up or (hole and not zeros)  # room for an archive, and nothing written
            else:
                lost = hole or not is_header(window.at(following, BLOCK))
            if lost:
                yield _stretch(zeros)
                following = search.header_from(following)
        else:
            yield found
        offset = following


def _stretch(offset: int, fault: str = "damaged_tar") -> TarMember:
    return TarMember("", offset, 0, fault)


def is_header(block: bytes) -> bool:
    """Return whether a block is a header: its magic and its checksum are right."""
    with suppress(Damaged, CutOff):
        return block[_MAGIC_PLACE : _MAGIC_PLACE + len(_MAGIC)] == _MAGIC and bool(header(block))
    return False


class _Search:
    """Looks for the next header. Offsets are multiples of the block size.

    Args:
        window: The archive.
        size: Size of the archive in bytes.

    Attributes:
        gave_up: Whether a search ended before it had seen all.
    """

    def __init__(self, window: Window, size: int) -> None:
        self.gave_up = False
        self._window, self._size = window, size
        self._left = _MOST_SEARCHED

    def behind_zeros(self, offset: int) -> int:
        """Return the offset of the first block that is not zero, or the size of the archive."""
        for start, chunk in self._chunks(offset):
            if rest := len(chunk.lstrip(b"\0")):
                return start + (len(chunk) - rest) // BLOCK * BLOCK
        return self._size

    def header_from(self, offset: int) -> int:
        """Return the offset of the first header at or behind an offset, or the size of the archive."""
        for start, chunk in self._chunks(offset):
            candidates = chunk[_MAGIC_PLACE::BLOCK]
            number = candidates.find(_MAGIC[:1])
            while number >= 0:
                if is_header(chunk[number * BLOCK : (number + 1) * BLOCK]):
                    return start + number * BLOCK
                number = candidates.find(_MAGIC[:1], number + 1)
        return self._size

    def _chunks(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yield the archive from an offset on in whole blocks, each with its offset."""
        while offset < self._size:
            chunk = self._window.chunk(offset)
            whole = len(chunk) // BLOCK * BLOCK or len(chunk)
            self._left -= whole
            if not whole or self._left < 0:
                self.gave_up = True
                return
            yield offset, chunk[:whole]
            offset += whole
