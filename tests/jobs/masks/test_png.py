import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.masks import png as module
from maskfleet.jobs.masks.png import Encoder, bands, default_values, shape_of


def read(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 6), st.data())
def test_a_mask_shows_the_value_of_each_class(height, width, classes, data):
    values = data.draw(st.lists(st.integers(0, 255), min_size=classes, max_size=classes, unique=True))
    labels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, classes, (height, width)).astype(np.uint8)
    image = read(Encoder(values).encode(labels))
    np.testing.assert_array_equal(np.asarray(image).astype(np.uint8), np.array(values, np.uint8)[labels])
    assert image.mode == ("1" if values == [0, 1] else "L")
    assert Encoder(values).encode(labels) == Encoder(values).encode(labels.copy())


@pytest.mark.skipif(module.deflating is zlib, reason="the extra 'fast' is not installed")
@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 16),
    st.sampled_from([[0, 1], [0, 255], [7, 0, 80]]),
    st.integers(0, 99),
)
def test_the_bytes_do_not_depend_on_the_compression_library(height, width, run, values, seed):
    drawn = np.random.default_rng(seed).integers(0, len(values), (height, -(-width // run)), np.uint8)
    labels = np.repeat(drawn, run, axis=1)[:, :width]
    faster = Encoder(values).encode(labels)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "deflating", zlib)
        assert Encoder(values).encode(labels) == faster


def test_colours_give_an_rgb_file():
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    image = read(Encoder([[0, 0, 0], [255, 128, 0]]).encode(labels))
    assert image.mode == "RGB"
    assert np.asarray(image)[0, 1].tolist() == [255, 128, 0]


@pytest.mark.parametrize("values", [[0, 256], [-1, 3], [[0, 0], [1, 1]], [[[1]]]])
def test_values_beyond_a_byte_are_refused(values):
    with pytest.raises(ValueError, match="mask values must be"):
        Encoder(values)


def test_default_values():
    assert default_values(2) == (0, 255)
    assert default_values(4) == (0, 1, 2, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.sampled_from(["bits", "grey", "colours"]))
def test_a_mask_is_decoded_in_rows(height, width, rows, kind):
    values = {"bits": [0, 1], "grey": [3, 200], "colours": [[1, 2, 3], [255, 0, 9]]}[kind]
    labels = np.random.default_rng(height * width).integers(0, 2, (height, width)).astype(np.uint8)
    data = Encoder(values).encode(labels)
    found = list(bands(data, rows))
    assert {len(band) for band in found[:-1]} <= {rows}
    assert shape_of(data) == np.concatenate(found).shape
    np.testing.assert_array_equal(np.concatenate(found), np.asarray(read(data)).astype(np.uint8))


def test_foreign_and_damaged_files_are_refused():
    labels = np.random.default_rng(0).integers(0, 2, (90, 80)).astype(np.uint8)
    whole = Encoder([0, 255]).encode(labels)
    other = io.BytesIO()
    Image.fromarray(labels).save(other, "PNG", dpi=(72, 72))
    damaged = whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]
    for data in (b"", b"text", other.getvalue(), whole[:-40], damaged):
        with pytest.raises(ValueError, match="mask"):
            list(bands(data, 7))
