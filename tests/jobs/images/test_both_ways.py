"""One truth by both ways of decoding: whole and in rows give the same pixels, and the same verdict on damage."""

import logging
import os

import numpy as np
import pytest
from faults.fuzz.files import sound
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.images.contract import Limits, Undecodable
from maskfleet.jobs.images.decode import corrupt, decode
from maskfleet.jobs.images.formats import FORMATS
from maskfleet.jobs.images.row_reader import _Rows

pytest.importorskip("pyvips", reason="needs the extra 'large'")

SOUND = sound()
IN_ROWS = sorted(format_.name for format_ in FORMATS if format_.in_rows)
FALSE_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82"}
NOT_IN_ROWS = "not in rows"
HARMS = {
    "none": lambda data, place, name: data,
    "cut": lambda data, place, name: data[:place],
    "ended": lambda data, place, name: data[:place] + FALSE_ENDS.get(name, b""),
    "a bit": lambda data, place, name: data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :],
    "zeros": lambda data, place, name: data[:place] + bytes(40) + data[place + 40 :],
    "ones": lambda data, place, name: data[:place] + b"\xff" * 40 + data[place + 40 :],
}


def whole(data, channels):
    try:
        return decode(data, channels=channels)[0]
    except Undecodable as error:
        return error.error_class


def in_rows(data, channels, step):
    descriptor = os.memfd_create("image")
    os.write(descriptor, data)
    with os.fdopen(descriptor, "rb") as file:
        try:
            rows = _Rows(file, Limits(channels))
            parts = [rows.read(top, min(step, rows.height - top)) for top in range(0, rows.height, step)]
        except Exception as error:
            if "cannot be read in rows" in str(error):
                return NOT_IN_ROWS
            return error.error_class if isinstance(error, Undecodable) else corrupt(error).error_class
    return np.concatenate(parts)


def verdict(outcome):
    return outcome if isinstance(outcome, str) else "ok"


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_whole_and_in_rows_agree_on_pixels_and_on_damage(data):
    name = data.draw(st.sampled_from(IN_ROWS))
    file = SOUND[name][data.draw(st.integers(0, len(SOUND[name]) - 1))]
    harm = data.draw(st.sampled_from(sorted(HARMS)))
    place = data.draw(st.integers(8, len(file) - 1))
    channels = data.draw(st.sampled_from([1, 3]))
    harmed = HARMS[harm](file, place, name)
    logging.disable()  # tifffile's words on damaged tags
    one, other = whole(harmed, channels), in_rows(harmed, channels, data.draw(st.integers(1, 50)))
    logging.disable(logging.NOTSET)
    if verdict(other) == NOT_IN_ROWS:
        return
    # What is wrong may be called by two names; that something is wrong may not.
    assert (verdict(one) == "ok") == (verdict(other) == "ok"), (verdict(one), verdict(other))
    if verdict(one) == "ok":
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_a_file_that_is_cut_and_ended_by_force_is_no_image(name):
    """Every file of these formats that is sound, ended in the middle of its pixels."""
    logging.disable()
    for data in SOUND[name]:
        if b"MPF\0" in data:  # its first picture is whole
            continue
        if verdict(whole(data, 3)) == "ok":
            place = len(data) * 2 // 3
            assert verdict(whole(data[:place] + FALSE_ENDS.get(name, b""), 3)) != "ok"
    logging.disable(logging.NOTSET)


def test_a_jpeg_without_its_end_mark_is_whole_by_both_ways():
    for data in SOUND["JPEG"]:
        one, other = whole(data[:-2], 3), in_rows(data[:-2], 3, 9)
        if verdict(other) != NOT_IN_ROWS:
            np.testing.assert_array_equal(one, other)
