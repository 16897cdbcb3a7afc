import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.images import decode as decoding
from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def file(image, format_="JPEG", **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


def test_pixels_are_pillow_s():
    data = file(Image.fromarray(RGB), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data, channels=3)[0], np.asarray(image))


@settings(deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 100), st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "keep_rgb"]),
    st.booleans(), st.sampled_from(["RGB", "L", "CMYK"]), st.integers(0, 2**32 - 1), st.booleans(),
)  # fmt: skip
def test_whole_files_have_pillow_s_pixels_and_cut_ones_are_refused(
    height, width, quality, sampling, progressive, mode, seed, cut
):
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8)).resize((width, height)).convert(mode)
    how = {"keep_rgb": True} if sampling == "keep_rgb" and mode == "RGB" else {"subsampling": "4:2:0"}
    how = how if sampling == "keep_rgb" else {"subsampling": sampling}
    data = file(smooth, quality=quality, progressive=progressive, **how)
    if cut:
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(Undecodable):
                decode(data[: len(data) - 8] + end, channels=3)
    else:
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode(data, channels=3)[0], np.asarray(image.convert("RGB")))
            one = image.convert("RGB").convert("L") if mode == "CMYK" else image.convert("L")
            np.testing.assert_array_equal(decode(data, channels=1)[0][..., 0], np.asarray(one))


def test_a_missing_end_mark_is_no_damage():
    data = file(Image.fromarray(RGB))
    np.testing.assert_array_equal(decode(data[:-2], channels=3)[0], decode(data, channels=3)[0])


def noise(**how):
    return file(Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)), **how)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("harm", [bytes(60), bytes(600), b"\x55" * 60])
def test_damage_in_the_middle_is_refused(harm, channels):
    data = noise(quality=90)
    middle = len(data) // 2
    damaged = data[:middle] + harm + data[middle + len(harm) :]
    with pytest.raises(Undecodable, match="damaged") as error:
        decode(damaged, channels=channels)
    assert error.value.error_class == "corrupt"


@pytest.mark.parametrize("optimize", [False, True])
def test_flat_images_are_no_damage_although_their_data_are_zeros(optimize):
    flat = np.full((640, 640, 3), 90, np.uint8)
    flat[:8, :8] = 200
    data = file(Image.fromarray(flat), optimize=optimize, quality=90)
    assert decode(data, channels=3)[0].shape == flat.shape


def test_zeros_in_metadata_are_no_damage():
    data = file(Image.fromarray(RGB), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(500), comment=bytes(300))
    np.testing.assert_array_equal(decode(data, channels=3)[0], decode(file(Image.fromarray(RGB)), channels=3)[0])


def test_a_progressive_file_without_its_last_scans_is_refused():
    data = noise(progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(Undecodable, match="ends before its last scans"):
        decode(data[:last] + b"\xff\xd9", channels=3)


def frame(marker, precision):
    return b"\xff\xd8\xff" + bytes([marker]) + b"\0\x0b" + bytes([precision, 0, 20, 0, 30, 1, 1, 0x11, 0]) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("marker", "name"),
    [(0xC5, "a hierarchical JPEG image of 8 bits"), (0xCB, "a lossless arithmetic JPEG image of 8 bits")],
)
def test_kinds_that_no_decoder_knows_are_refused_by_their_names(marker, name):
    with pytest.raises(Undecodable, match=name) as error:
        decode(frame(marker, 8), channels=3)
    assert error.value.error_class == "unsupported"


SAMPLINGS = ["4:4:4", "4:2:2", "4:2:0"]  # in the last two, black is sampled unlike the luma


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", SAMPLINGS)
@pytest.mark.parametrize("how", [{}, {"restart_marker_blocks": 7}])
def test_cmyk_is_judged_as_strictly_as_colour(subsampling, progressive, how):
    colours = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8)
    how = how | {"quality": 90, "subsampling": subsampling, "progressive": progressive}
    data = file(Image.fromarray(colours, "CMYK"), **how)
    with Image.open(io.BytesIO(data)) as image:
        for channels, mode in ((3, "RGB"), (1, "L")):
            expected = np.asarray(image.convert("RGB").convert(mode)).reshape(90, 120, channels)
            np.testing.assert_array_equal(decode(data, channels=channels)[0], expected)
        np.testing.assert_array_equal(decode(data, channels=4)[0], np.asarray(image))
    middle = len(data) // 2
    for damaged in (
        data[:middle] + bytes(60) + data[middle + 60 :],
        data[:middle] + b"\x55" * 60 + data[middle + 60 :],
        data[:middle] + b"\xff\xd9",
        data[:middle],
        data[: len(data) - 40],
    ):
        with pytest.raises(Undecodable) as error:
            decode(damaged, channels=3)
        assert error.value.error_class == "corrupt"
    np.testing.assert_array_equal(decode(data[:-2], channels=4)[0], decode(data, channels=4)[0])


@pytest.mark.parametrize("size_", [0, 3 * 20 * 30 - 1, 3 * 20 * 30, 10_000])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_lie_in_the_buffer_if_they_fit(size_, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).convert(mode)
    data = file(image, "JPEG")
    memory = np.full(size_, 7, np.uint8)
    pixels, size, _ = decode(data, channels=3, buffer=memory)
    assert size == (20, 30)
    np.testing.assert_array_equal(pixels, decode(data, channels=3)[0])
    there = np.may_share_memory(pixels, memory)
    assert there == (mode == "RGB" and size_ >= pixels.size)
    if there:
        np.testing.assert_array_equal(memory[: pixels.size], pixels.reshape(-1))
    assert (memory[pixels.size if there else 0 :] == 7).all()


def test_the_direct_path_is_used(monkeypatch):
    data = file(Image.fromarray(RGB), "JPEG")
    expected = decode(data, channels=3)[0]
    monkeypatch.setattr(decoding, "planes_of", None)
    assert (decode(data, channels=3)[0] == expected).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored():
    data = file(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    for upright in (False, True):
        assert decode(data, channels=3, upright=upright)[0].shape == RGB.shape
