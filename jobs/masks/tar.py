"""The format `tar`: a shard's PNG files in one tar archive, readable by WebDataset.

WebDataset ends the name of a sample at the first dot of its file's name, and takes files of one name for one sample. So
the dots of a mask's name, but the last, are written as `%2E`. Masks of images called `.` and `..` alone have this code
in the last part of their own names, and no mask's name of dots alone is changed.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from maskfleet.jobs.masks.png_files import PngFiles

if TYPE_CHECKING:
    import pyarrow as pa

_END = bytes(1024)
_EMPTY_HEADER = tarfile.TarInfo().tobuf(tarfile.PAX_FORMAT)
_BLANK_HEADER = _EMPTY_HEADER[:148] + b" " * 8 + _EMPTY_HEADER[156:]


class Tar(PngFiles):
    """PNG files in a tar archive per shard."""

    archive = "masks.tar"
    archive_label = "tars"

    def pack(self, table: "pa.Table", files: Mapping[str, bytes]) -> bytes:
        return tar((_member(name), data) for name, data in files.items())

    def unpack(self, archive: bytes) -> Iterator[tuple[str, bytes]]:
        return ((_mask(name), data) for name, data in untar(archive))


FORMAT = Tar()

_DOT = "%2E"


def _member(name: str) -> str:
    """Return the name of a mask's member."""
    if name.count(".") == 1:  # that of nearly every mask
        return name
    folders, slash, last = name.rpartition("/")
    stem, dot, ending = last.rpartition(".")
    if not stem.strip("."):
        return name
    return f"{folders}{slash}{stem.replace('.', _DOT)}{dot}{ending}"


def _mask(member: str) -> str:
    """Return the name of a member's mask."""
    if _DOT not in member:
        return member
    folders, slash, last = member.rpartition("/")
    if not last.removesuffix(".png").replace(_DOT, ""):
        return member
    return f"{folders}{slash}{last.replace(_DOT, '.')}"


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar archive of named files. Equal members give equal bytes."""
    parts: list[bytes] = []
    for name, data in members:
        parts += (_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE))
    return b"".join((*parts, _END))


def _header(name: str, size: int) -> bytes:
    """Header as `tarfile` writes it. Headers of ordinary names and sizes differ in three fields, set here directly."""
    if len(name) < tarfile.LENGTH_NAME and name.isascii() and size < 2**32:
        header = bytearray(_BLANK_HEADER)
        header[: len(name)] = name.encode()
        header[124:136] = b"%011o\0" % size
        header[148:156] = b"%06o\0 " % sum(header)  # the checksum counts its own field as eight spaces
        return bytes(header)
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def untar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each regular file in an archive, in its order. Writes nothing to disk."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for header in archive:
            file = archive.extractfile(header) if header.isreg() else None
            if file is not None:
                yield header.name, file.read()
