"""JPEG beyond 8 bits. The reference is the array that was written."""

import io

import imagecodecs
import numpy as np
import pytest

from maskfleet.jobs.images.contract import Limits, Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.readers.jpeg import read_header
from maskfleet.jobs.images.streams import Stream, Unreadable


def smooth(bits, bands):
    corners = np.random.default_rng(0).integers(0, 2**bits, (6, 5, bands))
    pixels = np.kron(corners, np.ones((8, 8, 1), np.int64)).astype(np.uint8 if bits == 8 else np.uint16)
    return pixels[..., 0].copy() if bands == 1 else pixels


KINDS = {
    "12 bits": (12, lambda pixels: imagecodecs.jpeg8_encode(pixels, 100, bitspersample=12, subsampling="444"), 12),
    "lossless, 8 bits": (8, lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=8), 0),
    "lossless, 12 bits": (12, lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=12), 0),
    "lossless, 16 bits": (16, lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=16), 0),
    "LS, 8 bits": (8, imagecodecs.jpegls_encode, 0),
    "LS, 16 bits": (16, imagecodecs.jpegls_encode, 0),
    "LS, near": (16, lambda pixels: imagecodecs.jpegls_encode(pixels, 2), 2),
}


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_that_were_written(name, bands):
    bits, write, bound = KINDS[name]
    pixels = smooth(bits, bands)
    image = read_header(io.BytesIO(write(pixels)))
    assert (image.height, image.width) == (48, 40)
    assert np.abs(np.asarray(image.pixels()).astype(int) - pixels).max() <= bound
    if bits > 8:
        assert (image.maximum, image.colours) == (2**bits - 1, bands)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_refused(name, bands):
    bits, write, _ = KINDS[name]
    data = write(smooth(bits, bands))
    middle = len(data) * 2 // 3
    for damaged in (data[:middle], data[:middle] + b"\xff\xd9", data[:middle] + b"\x55" * 20 + data[middle + 20 :]):
        with pytest.raises(Undecodable) as error:
            decode(damaged, channels=3)
        assert error.value.error_class == "corrupt"


def test_rows_are_refused_by_the_bits(tmp_path):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    (tmp_path / "image").write_bytes(KINDS["12 bits"][1](smooth(12, 1)))
    with (tmp_path / "image").open("rb") as opened, pytest.raises(Unreadable, match="12 bits cannot be read in rows"):
        Stream(opened.fileno(), Limits(3))
