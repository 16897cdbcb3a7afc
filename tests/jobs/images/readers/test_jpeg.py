import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.images import decode as decoding
from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.readers import jpeg as module

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def file(image, format_="JPEG", **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


def test_pixels_are_pillow_s():
    data = file(Image.fromarray(RGB), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data, channels=3)[0], np.asarray(image))


needs_fast = pytest.mark.skipif(module.simplejpeg is None, reason="the extra 'fast' is not installed")


def both_ways(data):
    """Result of a file without the extra `fast`, and with it."""
    results = []
    for decoder in (None, module.simplejpeg):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "simplejpeg", decoder)
            try:
                pixels, size = decode(data, channels=3)
                results.append((pixels.tolist(), pixels.dtype, size))
            except Undecodable as error:
                results.append((error.error_class, str(error)))
    return results


@needs_fast
@settings(deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 100), st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "keep_rgb"]),
    st.booleans(), st.sampled_from(["RGB", "L", "CMYK"]), st.integers(0, 2**32 - 1), st.sampled_from([None, "cut", "bent"]),
)  # fmt: skip
def test_the_fast_decoder_changes_nothing(height, width, quality, sampling, progressive, mode, seed, harm):
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8)).resize((width, height)).convert(mode)
    how = {"keep_rgb": True} if sampling == "keep_rgb" and mode == "RGB" else {"subsampling": "4:2:0"}
    how = how if sampling == "keep_rgb" else {"subsampling": sampling}
    data = bytearray(file(smooth, "JPEG", quality=quality, progressive=progressive, **how))
    if harm == "cut":
        del data[len(data) * 2 // 3 :]
    elif harm == "bent":
        for place in random.integers(len(data) // 3, len(data), 3):
            data[place] ^= 1 << int(random.integers(8))
    without, with_ = both_ways(bytes(data))
    assert with_ == without


@needs_fast
@pytest.mark.parametrize("size_", [0, 3 * 20 * 30 - 1, 3 * 20 * 30, 10_000])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_lie_in_the_buffer_if_they_fit(size_, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).convert(mode)
    data = file(image, "JPEG")
    memory = np.full(size_, 7, np.uint8)
    pixels, size = decode(data, channels=3, buffer=memory)
    assert size == (20, 30)
    np.testing.assert_array_equal(pixels, decode(data, channels=3)[0])
    there = np.may_share_memory(pixels, memory)
    assert there == (mode == "RGB" and size_ >= pixels.size)
    if there:
        np.testing.assert_array_equal(memory[: pixels.size], pixels.reshape(-1))
    assert (memory[pixels.size if there else 0 :] == 7).all()


@needs_fast
def test_the_fast_decoder_is_used(monkeypatch):
    data = file(Image.fromarray(RGB), "JPEG")
    expected = decode(data, channels=3)[0]
    monkeypatch.setattr(decoding, "planes_of", None)
    assert (decode(data, channels=3)[0] == expected).all()


@needs_fast
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored_by_both_decoders():
    data = file(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    without, with_ = both_ways(data)
    assert with_ == without
    assert with_[2] == RGB.shape[:2]
