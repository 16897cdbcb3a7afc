import io

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.images.readers.tiff import read_header
from maskfleet.jobs.images.readers.tiff_segments import Segments

PIXELS = np.random.default_rng(0).integers(0, 65536, (300, 90, 3)).astype(np.uint16)
LAYOUTS = {
    "one strip": {"rowsperstrip": 300, "compression": "zlib"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "plain strips": {"rowsperstrip": 300},
    "tiles": {"tile": (64, 32), "compression": "zlib"},
    "planes": {"rowsperstrip": 50, "compression": "zlib", "planarconfig": "separate"},
}


def written(how):
    sink = io.BytesIO()
    separate = how.get("planarconfig") == "separate"
    tifffile.imwrite(sink, PIXELS.transpose(2, 0, 1) if separate else PIXELS, photometric="rgb", metadata=None, **how)
    sink.seek(0)
    return sink


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(0, 299), st.integers(1, 300))
def test_any_rows_are_those_of_the_image(name, top, count):
    bottom = min(300, top + count)
    rows = read_header(written(LAYOUTS[name])).rows(top, bottom)
    np.testing.assert_array_equal(rows, PIXELS[top:bottom])


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_asked_for_in_turn_decode_a_large_segment_once(name, monkeypatch):
    read = []
    original = Segments._read

    def noted(self, offset, count):
        read.append((offset, count))
        return original(self, offset, count)

    monkeypatch.setattr(Segments, "_read", noted)
    image = read_header(written(LAYOUTS[name]))
    for top in range(0, 300, 64):  # tiles ask with overlaps
        np.testing.assert_array_equal(
            image.rows(max(0, top - 16), min(300, top + 80)), PIXELS[max(0, top - 16) : top + 80]
        )
    if name == "plain strips":  # only the bytes of the rows
        assert sum(count for _, count in read) < 2 * PIXELS.nbytes
    elif name == "one strip":
        assert len(read) == 1
    else:  # whole segments of an overlap are read again
        assert len(read) < 2 * len(set(read))
    assert not image._segments._held
