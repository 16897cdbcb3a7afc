"""Masks as GeoTIFF, read back by Pillow and by tifffile."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
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


TYPES = {1: "B", 2: "s", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "B", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L"}
"""Types of tags, by TIFF 6.0, as `struct` writes them; 13 is an offset."""


def tagged(*tags, height=300, width=410):
    """A TIFF with these tags as they are, whatever they say: (code, type, values or bytes)."""
    tags = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1]), (273, 4, [8]), (277, 3, [1]),
        (278, 4, [height]), (279, 4, [height * width]), *tags,
    ]  # fmt: skip
    start = 8 + height * width + 6
    head = b"II*\0" + struct.pack("<L", start) + bytes(height * width + 6)
    directory, beyond = struct.pack("<H", len(tags)), b""
    behind = start + 2 + 12 * len(tags) + 4
    for code, kind, values in sorted(tags):
        data = (
            values
            if isinstance(values, bytes)
            else b"".join(
                struct.pack(f"<{TYPES[kind]}", *v) if isinstance(v, tuple) else struct.pack(f"<{TYPES[kind]}", v)
                for v in values
            )
        )
        directory += struct.pack("<HHL", code, kind, len(values))
        if len(data) > 4:
            directory += struct.pack("<L", behind + len(beyond))
            beyond += data + bytes(len(data) % 2)
        else:
            directory += data.ljust(4, b"\0")
    return io.BytesIO(head + directory + bytes(4) + beyond)


SCALE, TIE = (33550, 12, [10.0, 10.0, 0.0]), (33922, 12, [0.0, 0.0, 0.0, 399960.0, 5700000.0, 0.0])
RESOLUTION = (282, 5, [(300, 1)]), (283, 5, [(300, 1)]), (296, 3, [2])


def written(*tags):
    """The tags of the mask of an image with these tags."""
    found = placement(tagged(*tags), 300, 410)
    labels = labels_of(300, 410)
    data = tiff(bands(labels), shape=labels.shape, placement=found)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert (file.asarray() == labels).all()
        return {tag.code: tag.value for tag in file.pages[0].tags}


@pytest.mark.parametrize(
    "odd",
    [
        (282, 5, [(0, 0)]),
        (282, 5, [(300, 0)]),
        (283, 5, [(0, 1)]),
        (282, 11, [72.0]),
        (282, 12, [float("nan")]),
        (283, 3, [72]),
        (283, 4, [72]),
        (282, 2, b"72\0"),
        (282, 5, [(300, 1), (300, 1)]),
        (282, 10, [(-300, 1)]),
        (296, 3, [9]),
        (296, 3, [0]),
        (296, 3, [2, 2]),
        (296, 11, [2.5]),
        (296, 2, b"inch\0"),
        (282, 99, b"\0\0\0\0"),
        None,
    ],
)
def test_an_odd_resolution_is_left_out_and_the_rest_is_kept(odd):
    code = 282 if odd is None else odd[0]
    others = [tag for tag in RESOLUTION if tag[0] != code]
    found = written(SCALE, TIE, *others, *([] if odd is None else [odd]))
    assert (found[33550], found[33922]) == (tuple(SCALE[2]), tuple(TIE[2]))
    assert 296 not in found or found[296] == 1
    assert written(SCALE, TIE, *RESOLUTION)[282] == (300, 1)


def test_a_unit_that_is_missing_is_inch():
    assert written(SCALE, TIE, *RESOLUTION[:2])[296] == 2


@pytest.mark.parametrize(
    "odd",
    [
        (33550, 12, [10.0]),
        (33550, 3, [10, 10, 0]),
        (33550, 12, [float("nan"), 10.0, 0.0]),
        (33922, 12, [0.0] * 5),
        (34264, 12, [1.0] * 15),
        (34735, 12, [1.0, 1.0, 0.0, 0.0]),
        (34735, 3, [1, 1]),
        (34736, 2, b"one\0"),
        (34737, 7, b"\xff\xfe"),
        (50844, 12, [1.0] * 91),
    ],
)
def test_an_odd_georeference_is_not_copied_in_part(odd):
    found = written(*[tag for tag in (SCALE, TIE) if tag[0] != odd[0]], odd, *RESOLUTION)
    assert not found.keys() & {33550, 33922, 34264, 34735, 34736, 34737, 50844}
    assert found[282] == (300, 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_tag_ends_an_export(data):
    codes = st.sampled_from([274, 282, 283, 296, 33550, 33922, 34264, 34735, 34736, 34737, 50844])
    sized = st.binary(max_size=100).map(lambda raw: raw or b"\0")
    written(
        *[(code, data.draw(st.integers(0, 18)), data.draw(sized)) for code in data.draw(st.sets(codes, max_size=4))]
    )


RPC = (50844, 12, [1.0, 0.5, 2000.0, 3000.0, 48.1, 11.5, 500.0, 2000.0, 3000.0, 0.1, 0.1, 500.0] + [1.0] + [0.0] * 19 + [1.0] + [0.0] * 19 + [1.0] + [0.0] * 19 + [1.0] + [0.0] * 19)  # fmt: skip


def test_rasterio_reads_what_the_documentation_says(tmp_path):
    """Position, coordinate system, rational polynomial coefficients and resolution; neither no-data value nor texts."""
    rasterio = pytest.importorskip("rasterio")
    keys = (34735, 3, [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633])
    kept = [SCALE, TIE, keys, RPC, *RESOLUTION]
    image = tagged(*kept, (NO_DATA, 2, b"0\0"), (42112, 2, b"<GDALMetadata></GDALMetadata>\0"))
    (tmp_path / "image.tif").write_bytes(image.getvalue())
    labels = labels_of(300, 410)
    found = placement(image, 300, 410)
    (tmp_path / "mask.tif").write_bytes(tiff(bands(labels), shape=labels.shape, placement=found))
    with rasterio.open(tmp_path / "image.tif") as before, rasterio.open(tmp_path / "mask.tif") as after:
        assert before.nodata == 0
        assert after.nodata is None
        assert (after.crs, after.transform, after.rpcs) == (before.crs, before.transform, before.rpcs)
        assert after.crs.to_epsg() == 32633
        assert after.rpcs.line_off == 2000
        assert after.tags()["TIFFTAG_XRESOLUTION"] == before.tags()["TIFFTAG_XRESOLUTION"]
        assert (after.read(1) == labels).all()
