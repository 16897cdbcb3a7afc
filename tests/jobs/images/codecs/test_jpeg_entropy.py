"""The walk through entropy-coded data, against simplejpeg, which asks libjpeg."""

import io

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.images.codecs import jpeg_entropy, jpeg_markers

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
HOW = st.fixed_dictionaries(
    {
        "quality": st.integers(1, 100), "progressive": st.booleans(), "optimize": st.booleans(),
        "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]), "restart_marker_blocks": st.integers(0, 20),
    }
)  # fmt: skip
SIDES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def drawn(mode, sides, seed, how):
    random = np.random.default_rng(seed)
    corners = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
    sink = io.BytesIO()
    corners.resize(sides).convert(mode).save(sink, "JPEG", **how)
    return sink.getvalue()


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(sorted(SPACES)), SIDES, st.integers(0, 2**32 - 1), HOW, st.floats(0, 0.999), st.integers(0, 7))
def test_what_libjpeg_warns_of_is_found_and_sound_files_pass(mode, sides, seed, how, where, bit):
    data = drawn(mode, sides, seed, how)
    assert jpeg_entropy.damage(data) is None
    scan = data.index(b"\xff\xda") + 2
    start = scan + int.from_bytes(data[scan : scan + 2])
    if how["progressive"] or start >= len(data) - 2:
        return  # headers of later scans are damaged, too, and decoders judge those
    place = start + int(where * (len(data) - 2 - start))
    flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    for damaged in (flipped, data[:place] + b"\xff\xd9"):
        try:
            simplejpeg.decode_jpeg(damaged, SPACES[mode], strict=True)
        except ValueError as error:
            if "subsampling" not in str(error):
                assert jpeg_entropy.damage(damaged) is not None


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("bands", [1, 3])
def test_lossless_files_are_walked_through(bits, bands):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (40, 50, bands)).astype(np.uint8 if bits == 8 else np.uint16)
    data = imagecodecs.jpeg8_encode(pixels.squeeze(), lossless=True, bitspersample=bits)
    assert jpeg_markers.frame_of(data).process == jpeg_markers.LOSSLESS
    assert jpeg_entropy.damage(data) is None
    for cut in range(len(data) // 2, len(data) - 3, 97):
        assert jpeg_entropy.damage(data[:cut] + b"\xff\xd9") is not None


def test_a_missing_restart_mark_is_damage():
    data = drawn("RGB", (90, 90), 0, {"restart_marker_blocks": 5, "quality": 90})
    place = data.index(b"\xff\xd1")
    assert "restart" in jpeg_entropy.damage(data[:place] + data[place + 2 :])


def test_a_file_without_scans_is_damage():
    data = drawn("RGB", (9, 9), 0, {})
    assert jpeg_entropy.damage(data[: data.index(b"\xff\xda")] + b"\xff\xd9") == "its pixels end early"
