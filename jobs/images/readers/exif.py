"""The orientation in EXIF data, read by itself: other tags may be damaged or point beyond the data.

EXIF data are a TIFF header and directory (CIPA DC-008, "Exif 2.32", 4.5).
"""

import struct

_HEADER = b"Exif\0\0"
_ORIENTATION = 0x0112
_ENTRY = 12
_SHORT, _LONG = 3, 4


def orientation_of(exif: bytes) -> int | None:
    """Return the orientation, 1 to 8; None if the data state none, or are damaged.

    Args:
        exif: EXIF data, with or without the header of a JPEG segment.
    """
    data = exif.removeprefix(_HEADER)
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    if start + 2 > len(data):
        return None
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for place in range(start + 2, min(start + 2 + count * _ENTRY, len(data) - _ENTRY + 1), _ENTRY):
        tag, kind = struct.unpack_from(f"{order}HH", data, place)
        if tag == _ORIENTATION and kind in (_SHORT, _LONG):
            value: int = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'L'}", data, place + 8)[0]
            return value if 1 <= value <= 8 else None
    return None
