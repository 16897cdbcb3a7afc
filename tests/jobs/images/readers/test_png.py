import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.readers.png import _chunks

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def png():
    sink = io.BytesIO()
    Image.fromarray(RGB).save(sink, "PNG")
    return sink.getvalue()


def chunk(kind, data, *, crc=None):
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", checksum)


BAD = {
    "large compressed text": chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(2**21))),
    "large profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**21))),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b", crc=1),
    "damaged text": chunk(b"iTXt", b"\xff"),
    "damaged EXIF": chunk(b"eXIf", b"II\xff\xff"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", [33, -12])
def test_what_says_nothing_of_the_pixels_does_not_refuse_them(name, place):
    data = png()
    data = data[:place] + BAD[name] + data[place:]  # after the header, or before the end
    for upright in (False, True):
        np.testing.assert_array_equal(decode(data, channels=3, upright=upright)[0], RGB)


@pytest.mark.parametrize("place", [50, 100, 900])
def test_damaged_pixels_are_refused_all_the_same(place):
    data = bytearray(png())
    data[place] ^= 255
    with pytest.raises(Undecodable) as error:
        decode(bytes(data), channels=3)
    assert error.value.error_class == "corrupt"


def test_a_cut_file_is_refused():
    data = png()
    for end in (len(data) // 2, len(data) - 20, 40):
        with pytest.raises(Undecodable):
            decode(data[:end] + BAD["damaged text"], channels=3)


@pytest.mark.parametrize("kind", [b"IDAT", b"PLTE", b"tRNS"])
def test_a_wrong_checksum_of_the_pixels_is_damage(kind):
    """Pillow does not look at it; a flipped bit of a stored block changes pixels and nothing else."""
    image = Image.fromarray(RGB[..., 0] % 4, "P")
    image.putpalette(RGB.reshape(-1)[:768].tolist())
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=0, transparency=bytes([9, 8, 7, 6]))
    data = bytearray(sink.getvalue())
    assert decode(bytes(data), channels=3)[0].shape == RGB.shape
    data[data.index(kind) + 4 + (50 if kind == b"IDAT" else 2)] ^= 1
    with pytest.raises(Undecodable, match="damaged"):
        decode(bytes(data), channels=3)


def test_a_missing_end_is_no_damage():
    data = png()
    np.testing.assert_array_equal(decode(data[:-12], channels=3)[0], RGB)


def test_what_lies_behind_the_image_is_not_walked():
    data = png() + bytes(2**20)
    np.testing.assert_array_equal(decode(data, channels=3).pixels, RGB)
    assert [chunk.kind for chunk in _chunks(data)] == [b"IHDR", b"IDAT", b"IEND"]
