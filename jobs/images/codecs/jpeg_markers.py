"""What a JPEG file says of itself in its markers (ITU-T T.81, Annex B): its process, its precision, and its scans.

libjpeg decodes some damaged files without a warning: those lacking their last scans, and those with zeros in the middle
after an unfinished download.
"""

import mmap
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from maskfleet.jobs.images.contract import Undecodable

LOSSLESS, LS = 0xC3, 0xF7
"""Processes that keep every bit: lossless JPEG, and JPEG-LS."""

_SOF = {
    0xC0: "", 0xC1: "", 0xC2: "", LOSSLESS: "", 0xC5: "hierarchical JPEG", 0xC6: "hierarchical JPEG",
    0xC7: "hierarchical lossless JPEG",
    0xC9: "", 0xCA: "", 0xCB: "lossless arithmetic JPEG", 0xCD: "hierarchical JPEG", 0xCE: "hierarchical JPEG",
    0xCF: "hierarchical lossless JPEG",
    LS: "",
}  # fmt: skip
"""Processes by the marker of the frame; "" for those that decoders know."""

PROGRESSIVE = (0xC2, 0xCA)
_DHT, _EOI, _SOS = 0xC4, 0xD9, 0xDA
_ALONE = (0x01, *range(0xD0, 0xD9))
_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of entropy-coded data."""

_COEFFICIENTS = 64
_ZEROS = bytes(32)
"""More zeros than one block of coefficients takes."""

_END_OF_BLOCK = 0


class Segment(NamedTuple):
    """A marker with its parameters.

    Attributes:
        marker: Second byte of the marker.
        parameters: Bytes after the length.
        end: Offset of the byte after the segment.
    """

    marker: int
    parameters: bytes
    end: int


Data = bytes | mmap.mmap


def segments(data: Data) -> Iterator[Segment]:
    """Yield the segments of a file up to the end of its image; stop at the first that is damaged."""
    place = 2
    while (found := _NEXT.search(data, place)) is not None:
        marker, start = data[found.end() - 1], found.end()
        if marker == _EOI:
            return
        if marker in _ALONE:
            place = start
            continue
        place = start + int.from_bytes(data[start : start + 2])
        yield Segment(marker, data[start + 2 : place], place)


class Frame(NamedTuple):
    """Header of the frame.

    Attributes:
        process: Marker of the frame.
        precision: Bits of a sample.
        width: Width in px.
        height: Height in px.
        components: Number of components.
    """

    process: int
    precision: int
    width: int
    height: int
    components: int


def frame_of(head: Data) -> Frame | None:
    """Return the header of the frame.

    Args:
        head: Beginning of the file, up to its frame header or further.

    Returns:
        None if there is none.

    Raises:
        Undecodable: Its process is one that no decoder knows, named in the message.
    """
    for segment in segments(head):
        if segment.marker in _SOF and len(segment.parameters) >= 6:
            precision, height, width, components = struct.unpack_from(">BHHB", segment.parameters)
            if process := _SOF[segment.marker]:
                raise Undecodable(
                    "unsupported",
                    f"a {process} image of {precision} bits is not supported; store 8-bit JPEG, PNG or TIFF",
                )
            return Frame(segment.marker, precision, width, height, components)
    return None


def damage(data: Data, *, progressive: bool) -> str | None:
    """Return what is wrong with a file that libjpeg decodes without a warning, or None.

    Args:
        data: Bytes of the file.
        progressive: Whether its frame is progressive; else it is sequential.
    """
    if progressive:
        return None if _has_all_scans(data) else "the file ends before its last scans"
    return "a part of its pixels is zeros" if data.find(_ZEROS) >= 0 and _has_zeros_for_pixels(data) else None


def _has_all_scans(data: Data) -> bool:
    """Return whether the scans of a progressive file give every bit of every coefficient."""
    missing: dict[int, list[int]] = {}
    for segment in segments(data):
        if segment.marker in PROGRESSIVE:
            missing = {component: [1] * _COEFFICIENTS for component in segment.parameters[6::3]}
        elif segment.marker == _SOS and segment.parameters:
            count = segment.parameters[0]
            first, last, bits = segment.parameters[1 + 2 * count : 4 + 2 * count]
            for component in segment.parameters[1 : 1 + 2 * count : 2]:
                for place in range(first, min(last + 1, _COEFFICIENTS)):
                    missing.get(component, [0] * _COEFFICIENTS)[place] = bits & 15
    # A file may leave out the high frequencies of all components, which are zeros then, but not bits of those it has.
    return not any(bits for component in missing.values() for bits in component)


def _has_zeros_for_pixels(data: Data) -> bool:
    """Return whether entropy-coded data hold more zeros than any block of pixels.

    Zero bits may stand for flat blocks: then "end of block" has the code of zeros in every table of the scan.
    """
    symbols: dict[int, int] = {}
    for segment in segments(data):
        if segment.marker == _DHT:
            symbols |= _codes_of_zeros(segment.parameters)
        elif segment.marker == _SOS and segment.parameters:
            count = segment.parameters[0]
            tables = [selector & 15 for selector in segment.parameters[2 : 2 + 2 * count : 2]]
            stop = _NEXT.search(data, segment.end)
            place = data.find(_ZEROS, segment.end, stop.start() if stop else len(data))
            if place >= 0 and any(symbols.get(table, _END_OF_BLOCK) != _END_OF_BLOCK for table in tables):
                return True
    return False


def _codes_of_zeros(tables: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number of each table of AC coefficients, and the symbol whose code is all zeros."""
    while len(tables) > 17:
        count = sum(tables[1:17])
        if tables[0] >> 4 and count:
            yield tables[0] & 15, tables[17]  # codes are assigned in the order of the symbols, from zero on
        tables = tables[17 + count :]
