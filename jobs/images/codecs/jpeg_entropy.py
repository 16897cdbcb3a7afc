"""The entropy-coded data of a JPEG, walked through without decoding pixels (ITU-T T.81, Annexes F, G and H).

libjpeg only warns when its bits run out, when some are left over, or when they are no code. simplejpeg makes these
warnings errors but does not open every kind of file. The kinds that it does not open are judged here: black sampled
unlike the luma, 12 bits, lossless. Files with arithmetic coding are not judged.
"""

import array
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

import numpy as np

from maskfleet.jobs.images.codecs.jpeg_markers import Data, segments

_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS = 0xC0, 0xC1, 0xC2, 0xC3
_DHT, _SOS, _DRI = 0xC4, 0xDA, 0xDD
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_SCAN_ENDS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_COEFFICIENTS = 64
_LAST = 128
"""Step of the code for the end of a block: further than any other leads."""

Codes = list[int]
"""By the next 16 bits: bits to go on times 256, plus the step; 0 if they begin no code."""

_NO_CODE = "its bits are no code"
_TOO_FEW, _TOO_MANY = "its pixels end early", "bytes are left over after its pixels"


class _Component(NamedTuple):
    """Sampling of a component, and its size in data units: blocks, or samples of a lossless image."""

    across: int
    down: int
    columns: int
    rows: int


class _Part(NamedTuple):
    """Component of a scan, with its tables."""

    component: int
    dc: int
    ac: int


@dataclass
class _Frame:
    """State while walking.

    Attributes:
        process: Marker of the frame.
        components: By number.
        units: Data units across and down of the largest component in one scan of several, as MCUs.
        tables: By class and number.
        interval: MCUs between restart markers; 0 if there are none.
        nonzero: By component, for each block the coefficients that are not zero, as bits.
        codes: Tables made ready, by class and number.
    """

    process: int = 0
    components: dict[int, _Component] = field(default_factory=dict)
    units: tuple[int, int] = (0, 0)
    tables: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)
    interval: int = 0
    nonzero: dict[int, list[int]] = field(default_factory=dict)
    codes: dict[tuple[int, int], Codes] = field(default_factory=dict)


class _Harm(Exception):
    """The data are damaged."""


def damage(data: Data) -> str | None:
    """Return what is wrong with the entropy-coded data of a file, or None.

    Args:
        data: Bytes of the file. Its frame is sequential, progressive or lossless, with Huffman codes; others pass.
    """
    frame = _Frame()
    scans = 0
    try:
        for segment in segments(data):
            if _BASELINE <= segment.marker <= _LOSSLESS:
                _begin(frame, segment.marker, segment.parameters)
            elif segment.marker == _DHT:
                _note_tables(frame, segment.parameters)
            elif segment.marker == _DRI:
                frame.interval = int.from_bytes(segment.parameters[:2])
            elif segment.marker == _SOS and frame.components:
                stop = _SCAN_ENDS.search(data, segment.end)
                _walk_scan(frame, segment.parameters, data[segment.end : stop.start() if stop else len(data)])
                scans += 1
    except _Harm as harm:
        return str(harm)
    except (IndexError, KeyError, ValueError, ZeroDivisionError):
        return "its markers contradict each other"
    return None if scans or not frame.components else _TOO_FEW


def _begin(frame: _Frame, process: int, parameters: bytes) -> None:
    height, width = int.from_bytes(parameters[1:3]), int.from_bytes(parameters[3:5])
    listed = [parameters[place : place + 3] for place in range(6, 6 + 3 * parameters[5], 3)]
    sampling = {number: (factors >> 4, factors & 15) for number, factors, _ in listed}
    most = max(across for across, _ in sampling.values()), max(down for _, down in sampling.values())
    unit = 1 if process == _LOSSLESS else 8
    frame.process = process
    frame.units = ceil(width / (unit * most[0])), ceil(height / (unit * most[1]))
    frame.components = {
        number: _Component(
            across, down, ceil(ceil(width * across / most[0]) / unit), ceil(ceil(height * down / most[1]) / unit)
        )
        for number, (across, down) in sampling.items()
    }
    if not height:  # stated after the first scan
        frame.components = {}


def _note_tables(frame: _Frame, parameters: bytes) -> None:
    while len(parameters) > 17:
        counts, count = parameters[1:17], sum(parameters[1:17])
        place = parameters[0] >> 4, parameters[0] & 15
        frame.tables[place] = counts, parameters[17 : 17 + count]
        frame.codes.pop(place, None)
        parameters = parameters[17 + count :]


def _walk_scan(frame: _Frame, parameters: bytes, coded: bytes) -> None:
    count = parameters[0]
    listed = zip(parameters[1 : 1 + 2 * count : 2], parameters[2 : 2 + 2 * count : 2], strict=True)
    parts = [_Part(number, tables >> 4, tables & 15) for number, tables in listed]
    first, last, bits = parameters[1 + 2 * count : 4 + 2 * count]
    if count == 1:
        only = frame.components[parts[0].component]
        mcus, order = only.columns * only.rows, parts
    else:
        mcus, order = frame.units[0] * frame.units[1], []
        for part in parts:
            component = frame.components[part.component]
            order += [part] * (component.across * component.down)
    pieces = _RESTART.split(coded)
    markers = [marker[0] - 0xD0 for marker in pieces[1::2]]
    size = frame.interval or mcus
    if markers != [number % 8 for number in range(ceil(mcus / size) - 1)]:
        raise _Harm("restart marks are missing" if frame.interval else "it has marks where none belong")
    for number, piece in enumerate(pieces[::2]):
        window, length = _windows(piece.replace(b"\xff\x00", b"\xff"))
        begin = number * size
        end = min(begin + size, mcus)
        place = _walk(frame, order, (begin, end), window, (first, last, bits >> 4))
        if place > length:
            raise _Harm(_TOO_FEW)
        if length - place >= 8:
            raise _Harm(_TOO_MANY)


def _windows(piece: bytes) -> tuple[Sequence[int], int]:
    """Return 32 bits from each byte on, and the number of bits. Zeros follow, as libjpeg makes up."""
    padded = np.frombuffer(piece + bytes(8), np.uint8).astype(np.uint32)
    words = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
    return array.array("I", words.astype(np.uintc).tobytes()), 8 * len(piece)


def _walk(
    frame: _Frame, order: list[_Part], span: tuple[int, int], window: Sequence[int], band: tuple[int, int, int]
) -> int:
    """Walk through the MCUs of one piece, and return the place after its last bit."""
    first, last, refined = band
    try:
        if frame.process == _LOSSLESS:
            return _first_codes(window, [_dc(frame, part) for part in order], span[1] - span[0])
        if frame.process != _PROGRESSIVE:
            return _sequential(window, [(_dc(frame, part), _ac(frame, part)) for part in order], span[1] - span[0])
        if first == 0:
            if refined:
                return len(order) * (span[1] - span[0])
            return _first_codes(window, [_dc(frame, part) for part in order], span[1] - span[0])
        component = frame.components[order[0].component]
        known = frame.nonzero.setdefault(order[0].component, [0] * (component.columns * component.rows))
        walk = _refined if refined else _spectral
        return walk(window, _ac(frame, order[0]), known, (*span, first, last))
    except IndexError:
        raise _Harm(_TOO_FEW) from None


def _dc(frame: _Frame, part: _Part) -> Codes:
    return _ready(frame, (0, part.dc))


def _ac(frame: _Frame, part: _Part) -> Codes:
    return _ready(frame, (1, part.ac))


def _ready(frame: _Frame, place: tuple[int, int]) -> Codes:
    if place not in frame.codes:
        frame.codes[place] = _codes(*frame.tables[place], steps=bool(place[0]))
    return frame.codes[place]


def _codes(counts: bytes, symbols: bytes, *, steps: bool) -> Codes:
    """Return the table of a code, by its next 16 bits.

    For coefficients (`steps`) an entry holds the symbol, too: bits to go on · 65536 + symbol · 256 + step.
    """
    table = [0] * 65536
    code = number = 0
    for length, count in enumerate(counts, 1):
        for symbol in symbols[number : number + count]:
            run, size = symbol >> 4, symbol & 15
            bits = length + (size if steps or symbol < 16 else 0)  # a difference of 2^15 has no further bits
            step = run + 1 if size else 16 if run == 15 else _LAST
            start, width = code << (16 - length), 1 << (16 - length)
            entry = bits << 16 | symbol << 8 | step if steps else length + (symbol if symbol < 16 else 0)
            table[start : start + width] = [entry] * width
            code += 1
        number += count
        code <<= 1
    if len(table) != 65536:
        raise _Harm("a table of its codes is damaged")
    return table


def _first_codes(window: Sequence[int], tables: list[Codes], count: int) -> int:
    place = 0
    for _ in range(count):
        for table in tables:
            bits = table[window[place >> 3] >> (16 - (place & 7)) & 0xFFFF]
            if not bits:
                raise _Harm(_NO_CODE)
            place += bits
    return place


def _sequential(window: Sequence[int], tables: list[tuple[Codes, Codes]], count: int) -> int:
    place = 0
    for _ in range(count):
        for dc, ac in tables:
            bits = dc[window[place >> 3] >> (16 - (place & 7)) & 0xFFFF]
            if not bits:
                raise _Harm(_NO_CODE)
            place += bits
            coefficient = 1
            while coefficient < _COEFFICIENTS:
                entry = ac[window[place >> 3] >> (16 - (place & 7)) & 0xFFFF]
                if not entry:
                    raise _Harm(_NO_CODE)
                place += entry >> 16
                coefficient += entry & 255
            if _COEFFICIENTS < coefficient < _LAST:
                raise _Harm(_NO_CODE)
    return place


def _number(window: Sequence[int], place: int, bits: int) -> int:
    return window[place >> 3] >> (32 - bits - (place & 7)) & ((1 << bits) - 1)


def _spectral(window: Sequence[int], ac: Codes, known: list[int], span: tuple[int, int, int, int]) -> int:
    """Walk through the first scan of a band of coefficients."""
    begin, end, first, last = span
    place = empty = 0
    for block in range(begin, end):
        if empty:
            empty -= 1
            continue
        coefficient = first
        while coefficient <= last:
            entry = ac[window[place >> 3] >> (16 - (place & 7)) & 0xFFFF]
            if not entry:
                raise _Harm(_NO_CODE)
            place += entry >> 16
            run, size = entry >> 12 & 15, entry >> 8 & 15
            if not size and run < 15:
                empty = (1 << run) - 1 + _number(window, place, run)
                place += run
                break
            coefficient += run + 1
            if coefficient > last + 1:
                raise _Harm(_NO_CODE)
            if size:
                known[block] |= 1 << (coefficient - 1)
    return place


def _refined(window: Sequence[int], ac: Codes, known: list[int], span: tuple[int, int, int, int]) -> int:
    """Walk through a scan with one more bit of a band of coefficients."""
    begin, end, first, last = span
    band = (1 << (last + 1)) - (1 << first)
    place = empty = 0
    for block in range(begin, end):
        coefficient, before = first, known[block]
        while not empty and coefficient <= last:
            entry = ac[window[place >> 3] >> (16 - (place & 7)) & 0xFFFF]
            if not entry:
                raise _Harm(_NO_CODE)
            place += entry >> 16
            run, size = entry >> 12 & 15, entry >> 8 & 15
            if not size and run < 15:
                empty = (1 << run) + _number(window, place, run)
                place += run
                break
            while coefficient <= last:
                if before >> coefficient & 1:
                    place += 1
                elif run:
                    run -= 1
                else:
                    break
                coefficient += 1
            if size and coefficient <= last:
                known[block] |= 1 << coefficient
            coefficient += 1
        if empty:
            place += ((before & band) >> coefficient).bit_count()
            empty -= 1
    return place
