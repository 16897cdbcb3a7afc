import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.images.readers.exif import orientation_of


def exif(*entries, order="<"):
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8)
    return (
        head
        + struct.pack(f"{order}H", len(entries))
        + b"".join(struct.pack(f"{order}HHLHH", *each) for each in entries)
    )


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_found_behind_tags_that_point_beyond_the_data(order, value):
    data = exif((0x010E, 2, 10**6, 0xFFFF, 0xFFFF), (0x0112, 3, 1, value, 0), order=order)
    assert orientation_of(data) == value
    assert orientation_of(b"Exif\0\0" + data) == value


def test_pillow_s_own_data_are_read():
    data = Image.Exif()
    data[0x0112] = 6
    assert orientation_of(data.tobytes()) == 6


@pytest.mark.parametrize("data", [b"", b"II*\0", b"Exif\0\0", exif((0x0112, 3, 1, 9, 0)), exif((0x0112, 2, 1, 3, 0))])
def test_none_is_stated(data):
    assert orientation_of(data) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_no_error(data):
    assert orientation_of(b"II*\0\x08\0\0\0" + data) in (None, *range(1, 9))
