"""Masks as GeoTIFF, read back by Pillow and by tifffile."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from maskfleet.jobs.masks import geotiff as module
from maskfleet.jobs.masks.geotiff import TILE, Placement, placement, tiff

GEOREFERENCE = {
    33550: (12, (10.0, 10.0, 0.0)),
    33922: (12, (0.0, 0.0, 0.0, 399960.0, 5700000.0, 0.0)),
    34735: (3, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)),
    34736: (12, (6378137.0, 298.257223563)),
    34737: (2, "WGS 84 / UTM zone 33N|WGS 84|"),
}
NO_DATA = 42113


def image_file(height=300, width=410, *, bigtiff=False, byteorder="<", resolution=((300, 1), (2999, 10)), **more):
    """A georeferenced TIFF with a no-data value, like a satellite's."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    tags = [
        (code, kind, 0 if kind == 2 else len(value), value.encode() if kind == 2 else value, True)
        for code, (kind, value) in GEOREFERENCE.items()
    ]
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, bigtiff=bigtiff, byteorder=byteorder) as writer:
        writer.write(
            pixels,
            photometric="rgb",
            metadata=None,
            resolution=resolution,
            resolutionunit=3,
            extratags=[*tags, (NO_DATA, 2, 0, b"0", True), *more.get("extratags", ())],
        )
    return sink


def seek(sink):
    sink.seek(0)
    return sink


def bands(labels):
    return [labels[top : top + TILE] for top in range(0, len(labels), TILE)]


def labels_of(*shape):
    return (np.random.default_rng(1).random(shape) > 0.7).astype(np.uint8) * 255


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_georeference_and_resolution_are_kept(bigtiff, byteorder):
    place = placement(seek(image_file(bigtiff=bigtiff, byteorder=byteorder)), 300, 410)
    labels = labels_of(300, 410)
    data = tiff(bands(labels), shape=labels.shape, placement=place)
    with tifffile.TiffFile(io.BytesIO(data)) as read:
        page = read.pages[0]
        np.testing.assert_array_equal(page.asarray(), labels)
        for code, (kind, value) in GEOREFERENCE.items():
            assert (page.tags[code].value, int(page.tags[code].dtype)) == (value, kind), code
        assert page.tags[282].value == (300, 1)
        assert page.tags[283].value == (2999, 10)
        assert page.tags[296].value == 3
        assert NO_DATA not in page.tags  # 0 is a class here
        assert read.is_geotiff
        assert read.geotiff_metadata["ProjectedCSTypeGeoKey"] == 32633
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
        for code, (_, value) in GEOREFERENCE.items():
            assert image.tag_v2[code] == value, code
        assert image.info["dpi"] == pytest.approx((300 * 2.54, 299.9 * 2.54))


@pytest.mark.parametrize("shape", [(16, 16), (256, 256), (257, 511), (600, 700, 3), (1, 1)])
def test_any_shape_and_colours_are_read_back(shape):
    labels = labels_of(*shape)
    data = tiff(bands(labels), shape=shape, placement=None)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)).reshape(shape), labels)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
    assert tiff(bands(labels), shape=shape, placement=None) == data


def test_a_large_mask_becomes_a_bigtiff(monkeypatch):
    monkeypatch.setattr(module, "_CLASSIC_BYTES", 1000)
    labels = labels_of(300, 300)
    data = tiff(bands(labels), shape=labels.shape, placement=Placement())
    assert data[:4] == b"II\x2b\0"
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), labels)


def test_only_one_band_is_held_at_a_time():
    def coming():
        for _ in range(100):
            yield np.zeros((TILE, 4000), np.uint8)

    tracemalloc.start()
    tiff(coming(), shape=(100 * TILE, 4000), placement=None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * TILE * 4000  # of 100 bands


def test_an_image_on_another_grid_has_no_placement():
    assert placement(seek(image_file()), 300, 411) is None
    turned = (274, 3, 1, 6, True)
    assert placement(seek(image_file(300, 300, extratags=[turned])), 300, 300) is not None
    assert placement(seek(image_file(300, 300, extratags=[turned])), 300, 300, upright=True) is None
    assert placement(seek(image_file(300, 300)), 300, 300, upright=True) is not None


def test_other_files_have_no_placement():
    pixels = Image.fromarray(labels_of(40, 50))
    for form in ("PNG", "BMP"):
        sink = io.BytesIO()
        pixels.save(sink, form)
        assert placement(seek(sink), 40, 50) is None
    bare = io.BytesIO()
    pixels.save(bare, "TIFF")
    assert placement(seek(bare), 40, 50) is None
    assert placement(io.BytesIO(b""), 40, 50) is None
    with_resolution = io.BytesIO()
    pixels.save(with_resolution, "TIFF", dpi=(254, 254))
    found = placement(seek(with_resolution), 40, 50)
    assert (found.georeference, found.unit) == ((), 2)
    assert [a / b for a, b in found.resolution] == [254, 254]


def test_a_transformation_tag_is_kept():
    matrix = tuple(float(number) for number in range(16))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34264] = matrix
    tags.tagtype[34264] = 12
    sink = io.BytesIO()
    Image.fromarray(labels_of(40, 50)).save(sink, "TIFF", tiffinfo=tags)
    place = placement(seek(sink), 40, 50)
    with Image.open(io.BytesIO(tiff(bands(labels_of(40, 50)), shape=(40, 50), placement=place))) as image:
        assert image.tag_v2[34264] == matrix


def test_damaged_tags_give_no_placement():
    whole = image_file().getvalue()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(6):
            damaged[random.integers(0, 600)] = random.integers(0, 256)
        placement(io.BytesIO(damaged), 300, 410)
        placement(io.BytesIO(whole[: random.integers(0, len(whole))]), 300, 410)


def with_tag(data, code, *, kind, value):
    """A classic little-endian TIFF with another type and value of one tag."""
    changed = bytearray(data)
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] == code:
            changed[place + 2 : place + 12] = struct.pack("<HL", kind, 1) + value
    return bytes(changed)


@pytest.mark.parametrize(
    ("code", "kind", "value"),
    [
        (282, 5, b""),  # 0/0
        (282, 11, struct.pack("<f", 72)),
        (283, 3, struct.pack("<HH", 72, 0)),
        (296, 3, struct.pack("<HH", 9, 0)),
    ],
)
def test_an_odd_resolution_is_left_out_and_the_rest_is_kept(code, kind, value):
    whole = image_file().getvalue()
    data = with_tag(whole, code, kind=kind, value=value or struct.pack("<L", len(whole))) + bytes(8)
    found = placement(io.BytesIO(data), 300, 410)
    assert found is not None
    assert len(found.georeference) == 5
    assert found.resolution is None
