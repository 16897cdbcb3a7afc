import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.readers.png import PngFile, _chunks

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


@pytest.mark.parametrize(
    ("colour_type", "bands", "transparent"), [(2, 3, False), (2, 3, True), (4, 2, False), (6, 4, False)]
)
def test_a_damaged_image_of_16_bits_leaves_no_memory_behind(colour_type, bands, transparent):
    values = np.random.default_rng(0).integers(0, 2**16, (600, 800, bands), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">LLBBBBB", 800, 600, 16, colour_type, 0, 0, 0)
    before = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", bytes(6)) if transparent else b"")
    whole, half = (
        before + chunk(b"IDAT", zlib.compress(part, 1)) + chunk(b"IEND", b"") for part in (rows, rows[: len(rows) // 2])
    )
    found = PngFile(io.BytesIO(whole)).pixels()
    np.testing.assert_array_equal(np.asarray(found)[..., :bands], values)

    def size():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()

    for times in (3, 30):
        start = size()
        for _ in range(times):
            with pytest.raises(Undecodable, match="does not decode|damaged"):
                decode(half, channels=3)
    assert size() - start < 10 * values.nbytes
