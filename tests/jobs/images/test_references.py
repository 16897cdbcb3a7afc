"""Pixels against readers that share no code with ours: GDAL, OpenCV, libvips, and the array that was written.

Hypothesis chooses how a file is written: library, type, byte order, planes, compression, predictor, tiling, colours.
Each is read whole and in rows. Ours reads TIFF by tifffile and imagecodecs, so files of tifffile are also read by GDAL.
"""

import io
import itertools
import logging

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.images.formats import recognised

cv2 = pytest.importorskip("cv2", reason="needs the extra 'test'")
rasterio = pytest.importorskip("rasterio", reason="needs the extra 'test'")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


@pytest.fixture(autouse=True)
def quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))
SEED = st.integers(0, 2**32 - 1)
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]
FLOATS = ("float16", "float32", "float64")


def drawn(sides, bands, dtype, seed, *, bits=None):
    """Return noise of a whole type, (H, W, bands)."""
    random = np.random.default_rng(seed)
    if dtype in FLOATS:
        return random.standard_normal((*sides, bands)).astype(dtype)
    low, high = (0, 2**bits - 1) if bits else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return random.integers(low, high, (*sides, bands), endpoint=True).astype(dtype)


def as_array(pixels):
    """Return what a reader gave as an array, (H, W, bands); 1 bit as 0 and 1."""
    if isinstance(pixels, Image.Image) and pixels.mode == "P":
        pixels = pixels.convert("RGB")
    return np.atleast_3d(np.asarray(pixels))


def ours(data, *, cuts=()):
    """Read a file whole and in rows, and return its pixels, (H, W, bands)."""
    file = io.BytesIO(data)
    image = recognised(file).open(file, max_pixels=10**6)
    whole = as_array(image.pixels())
    if image.gives_rows:
        places = [0, *sorted({cut % image.height for cut in cuts} - {0}), image.height]
        rows = [as_array(image.rows(top, bottom)) for top, bottom in itertools.pairwise(places)]
        np.testing.assert_array_equal(np.concatenate(rows), whole)
    return whole


def by_gdal(data):
    with rasterio.io.MemoryFile(data) as memory, memory.open() as dataset:
        return dataset.read().transpose(1, 2, 0)


def by_opencv(data):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim == 2:
        return None if pixels is None else pixels[..., None]
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] >= 3 else pixels


COMPRESSIONS = [None, "lzw", "zlib", "zstd", "lzma", "packbits", "lerc", "jpeg2000", "jpegxl", "webp", "png"]
OF_A_CODEC = ("lerc", "jpeg2000", "jpegxl", "png")
UNKNOWN_TO_GDAL = ("jpeg2000", "jpegxl", "png")
CUTS = [{}, {"tile": (16, 16)}, {"tile": (32, 16)}, {"rowsperstrip": 1}, {"rowsperstrip": 7}]
WRITTEN = st.fixed_dictionaries(
    {
        "byteorder": st.sampled_from("<>"), "bigtiff": st.booleans(), "planar": st.booleans(),
        "compression": st.sampled_from(COMPRESSIONS), "predictor": st.booleans(), "cut": st.sampled_from(CUTS),
        "extras": st.sampled_from(["unassalpha", "assocalpha", "unspecified"]),
        "photometric": st.sampled_from(["minisblack", "miniswhite", "rgb"]),
    }
)  # fmt: skip


def may_hold(compression, dtype, bands, *, planar):
    """Return whether a compression of tifffile takes such pixels, all of them and without loss."""
    depth = 1 if planar else bands
    return {
        "jpeg2000": dtype in ("uint8", "uint16") and depth in (1, 3),
        "jpegxl": dtype in ("uint8", "uint16", "float32") and depth in (1, 3, 4),
        "webp": dtype == "uint8" and depth in (3, 4),
        "png": dtype in ("uint8", "uint16") and depth in (1, 3, 4),
        "lerc": dtype != "float16",
    }.get(compression, True)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(DTYPES), st.sampled_from([1, 2, 3, 4, 5]), SIDES, SEED, WRITTEN, st.lists(st.integers(0, 70)))
def test_tiffs_of_tifffile_are_read_as_written_and_as_gdal_reads_them(dtype, bands, sides, seed, how, cuts):
    how = dict(how)
    planar = how.pop("planar") and bands > 1
    cut, predictor, photometric = how.pop("cut"), how.pop("predictor"), how.pop("photometric")
    compression, extras = how["compression"], how.pop("extras")
    assume(photometric != "rgb" or bands >= 3)
    assume(how["byteorder"] == "<" or compression not in OF_A_CODEC)  # which tifffile writes wrongly, or not at all
    assume(may_hold(compression, dtype, bands, planar=planar))
    assume(not (compression == "webp" and photometric != "rgb"))
    if photometric == "miniswhite":
        assume(bands == 1 and dtype.startswith(("uint", "float")))
    stored = drawn(sides, bands, dtype, seed)
    if compression in ("lzw", "zlib", "zstd", "lzma") and predictor:
        how["predictor"] = True
        assume(dtype != "float16")  # of which tifffile and GDAL have two opinions
    others = bands - (3 if photometric == "rgb" else 1)
    how["extrasamples"] = [extras if others == 1 else "unspecified"] * others if others else None
    if compression == "webp":
        how["compressionargs"] = {"lossless": True}
    pixels = stored[..., 0] if bands == 1 else np.moveaxis(stored, 2, 0) if planar else stored
    planarconfig = None if bands == 1 else "separate" if planar else "contig"
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, byteorder=how.pop("byteorder"), bigtiff=how.pop("bigtiff")) as writer:
        writer.write(pixels, photometric=photometric, planarconfig=planarconfig, metadata=None, **cut, **how)
    found = ours(sink.getvalue(), cuts=cuts)
    if compression not in UNKNOWN_TO_GDAL and dtype != "float16":
        np.testing.assert_array_equal(by_gdal(sink.getvalue()), stored)
    if photometric == "miniswhite":
        stored = 1 - stored if dtype in FLOATS else np.iinfo(dtype).max - stored
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("photometric", ["RGB", "MINISBLACK"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("tiled", [True, False])
def test_bands_of_jpeg_are_not_taken_for_other_colours(photometric, interleave, bands, tiled):
    stored = np.asarray(Image.fromarray(drawn((5, 5), 4, "uint8", 0)).resize((50, 40)))[..., :bands]
    how = {"interleave": interleave, "compress": "JPEG", "tiled": tiled, "blockxsize": 16, "blockysize": 16}
    if bands >= 3:
        how["photometric"] = photometric
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", height=40, width=50, count=bands, dtype="uint8", **how) as dataset:
            dataset.write(stored.transpose(2, 0, 1))
        data = memory.read()
    assert np.abs(ours(data, cuts=[7]).astype(int) - by_gdal(data)).max() <= 2


ENCODED = {
    "jpeg2000": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0),
    "jpegxl": lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True),
    "png": imagecodecs.png_encode,
}


@pytest.mark.parametrize("compression", ENCODED)
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("byteorder", "<>")
def test_codecs_with_an_order_of_their_own_ignore_the_order_of_the_file(compression, bands, byteorder):
    stored = drawn((20, 30), bands, "uint16", 0)
    pixels = stored[..., 0].copy() if bands == 1 else stored
    sink = io.BytesIO()
    how = {"photometric": "rgb" if bands == 3 else "minisblack", "compression": compression, "metadata": None}
    with tifffile.TiffWriter(sink, byteorder=byteorder) as writer:
        writer.write(
            iter([ENCODED[compression](pixels)]), shape=pixels.shape, dtype=stored.dtype, rowsperstrip=20, **how
        )
    np.testing.assert_array_equal(ours(sink.getvalue(), cuts=[3]), stored)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1, 2, 4, 10, 12, 14]), st.sampled_from("<>"), SIDES, SEED, st.sampled_from(CUTS[2:]),
       st.sampled_from([None, "lzw", "zlib", "packbits"]), st.sampled_from(["minisblack", "miniswhite"]))  # fmt: skip
def test_bits_that_are_no_bytes_are_numbers(bits, order, sides, seed, cut, compression, photometric):
    stored = drawn(sides, 1, "uint8" if bits <= 8 else "uint16", seed, bits=bits)
    pixels = stored[..., 0].astype(bool) if bits == 1 else stored[..., 0]
    assume(bits == 1 or compression is None)  # tifffile writes no others
    assume(bits < 8 or order == "<")  # which tifffile writes wrongly
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, byteorder=order) as writer:
        bits_of = {} if bits == 1 else {"bitspersample": bits}
        writer.write(pixels, photometric=photometric, metadata=None, compression=compression, **bits_of, **cut)
    found = ours(sink.getvalue(), cuts=[3, 5])
    np.testing.assert_array_equal(by_gdal(sink.getvalue()), stored)
    np.testing.assert_array_equal(found, stored if photometric == "minisblack" else 2**bits - 1 - stored)


OF_GDAL = st.fixed_dictionaries(
    {
        "compress": st.sampled_from([None, "DEFLATE", "LZW", "ZSTD", "LZMA", "PACKBITS", "LERC", "LERC_ZSTD"]),
        "interleave": st.sampled_from(["pixel", "band"]), "predictor": st.sampled_from([1, 2, 3]),
        "tiled": st.booleans(), "blockysize": st.sampled_from([16, 32]), "bigtiff": st.sampled_from(["yes", "no"]),
        "endianness": st.sampled_from(["little", "big"]), "sparse_ok": st.booleans(),
    }
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.sampled_from([1, 2, 3, 4, 7]), SIDES, SEED, OF_GDAL, st.lists(st.integers(0, 70)))
def test_tiffs_of_gdal_are_read_as_gdal_reads_them(dtype, bands, sides, seed, how, cuts):
    assume(dtype != "float16")
    how = {name: value for name, value in how.items() if value is not None}
    if how.get("compress") not in ("DEFLATE", "LZW", "ZSTD") or how["predictor"] == (2 if dtype in FLOATS else 3):
        how["predictor"] = 1
    stored = drawn(sides, bands, dtype, seed)
    if dtype in FLOATS:
        assume(how["endianness"] == "little" or not how.get("compress", "").startswith("LERC"))  # GDAL loses them, too
        if seed % 3:  # in one band, or in all
            stored[:: 1 + seed % 5, :: 1 + seed % 7, : bands if seed % 2 else 1] = np.nan
    if how["tiled"]:
        how["blockxsize"] = 16
    elif how["blockysize"] > sides[0]:
        del how["blockysize"]
    data = written_by_gdal(stored, how)
    np.testing.assert_array_equal(ours(data, cuts=cuts), by_gdal(data))


def written_by_gdal(stored, how) -> bytes:
    """Return a GeoTIFF; gives up an example that GDAL itself cannot write, as LERC with NaN in some bands."""
    height, width, bands = stored.shape
    with rasterio.io.MemoryFile() as memory:
        shape = {"height": height, "width": width, "count": bands, "dtype": stored.dtype}
        try:
            with memory.open(driver="GTiff", **shape, **how) as dataset:
                if how["sparse_ok"]:  # what is not written is absent
                    half = max(1, height // 2)
                    dataset.write(stored[:half].transpose(2, 0, 1), window=rasterio.windows.Window(0, 0, width, half))
                else:
                    dataset.write(stored.transpose(2, 0, 1))
        except rasterio.errors.RasterioIOError:
            assume(not how.get("compress", "").startswith("LERC"))
            raise
        return memory.read()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 4, 10, 12, 14]), st.sampled_from([1, 3]), SIDES, SEED, st.booleans(),
       st.sampled_from([None, "DEFLATE", "LZW"]), st.sampled_from(["little", "big"]))  # fmt: skip
def test_bits_of_gdal_are_read_as_gdal_reads_them(bits, bands, sides, seed, tiled, compress, order):
    dtype = "uint8" if bits <= 8 else "uint16"
    assume(bands == 1 or bits > 8)
    stored = drawn(sides, bands, dtype, seed, bits=bits)
    how = {"nbits": bits, "endianness": order} | ({"compress": compress} if compress else {})
    how |= {"tiled": True, "blockxsize": 16, "blockysize": 32} if tiled else {}
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", height=sides[0], width=sides[1], count=bands, dtype=dtype, **how) as dataset:
            dataset.write(stored.transpose(2, 0, 1))
        data = memory.read()
    np.testing.assert_array_equal(by_gdal(data), stored)
    np.testing.assert_array_equal(ours(data, cuts=[5]), stored)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([".tiff", ".png", ".jp2", ".bmp", ".webp", ".jpg"]), st.sampled_from(["uint8", "uint16", "float32", "float64"]),
    st.sampled_from([1, 3, 4]), SIDES, SEED, st.sampled_from([1, 5, 8, 32773]),
)  # fmt: skip
def test_files_of_opencv_are_read_as_opencv_reads_them(ending, dtype, bands, sides, seed, compression):
    deep = {
        ".tiff": ("uint8", "uint16", "float32", "float64"),
        ".png": ("uint8", "uint16"),
        ".jp2": ("uint8", "uint16"),
    }
    assume(dtype in deep.get(ending, ("uint8",)))
    assume(bands in {".jpg": (1, 3), ".bmp": (1, 3), ".webp": (3, 4), ".jp2": (1, 3)}.get(ending, (1, 3, 4)))
    assume(ending != ".jp2" or min(sides) >= 32)
    stored = drawn(sides, bands, dtype, seed)
    how = {".tiff": [cv2.IMWRITE_TIFF_COMPRESSION, compression], ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101]}
    written = stored[..., [2, 1, 0, 3][:bands]] if bands >= 3 else stored
    done, data = cv2.imencode(ending, np.ascontiguousarray(written), how.get(ending, []))
    assert done
    data, found = data.tobytes(), ours(data.tobytes())
    if ending == ".png" and dtype == "uint16" and bands > 1 and found.dtype == np.uint8:
        return  # read by its high byte
    np.testing.assert_array_equal(found, by_opencv(data))
    if ending not in (".jpg", ".jp2", ".webp"):  # WebP leaves out the colours of what is transparent
        np.testing.assert_array_equal(found, stored)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["uint8", "uint16", "int16", "float32"]), st.sampled_from([1, 3, 4]), SIDES, SEED,
       st.sampled_from(["none", "lzw", "deflate", "packbits"]), st.booleans(), st.booleans(),
       st.sampled_from(["none", "horizontal"]))  # fmt: skip
def test_tiffs_of_libvips_are_read_as_written(dtype, bands, sides, seed, compression, tile, bigtiff, predictor):
    pyvips = pytest.importorskip("pyvips", reason="needs the extra 'large'")
    stored = drawn(sides, bands, dtype, seed)
    image = pyvips.Image.new_from_array(stored if bands > 1 else stored[..., 0])
    how = {"predictor": predictor if dtype.startswith("uint") else "none", "bigtiff": bigtiff}
    data = image.tiffsave_buffer(compression=compression, tile=tile, tile_width=16, tile_height=16, **how)
    np.testing.assert_array_equal(ours(data, cuts=[3]), stored)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["ycbcr", "rgb", "minisblack"]), st.sampled_from([(1, 1), (2, 2)]), SIDES, SEED, st.sampled_from([{}, {"tile": (16, 16)}]),
       st.booleans(), st.integers(30, 100))  # fmt: skip
def test_jpeg_in_tiff_is_read_as_gdal_and_opencv_read_it(photometric, sampling, sides, seed, cut, planar, quality):
    bands = 1 if photometric == "minisblack" else 3
    stored = np.asarray(Image.fromarray(drawn((5, 5), 3, "uint8", seed)).resize(sides[::-1]))[..., :bands]
    planar = planar and photometric == "rgb"
    pixels = np.ascontiguousarray(stored[..., 0] if bands == 1 else np.moveaxis(stored, 2, 0) if planar else stored)
    sink = io.BytesIO()
    how = {"planarconfig": "separate" if planar else "contig"} if bands == 3 else {}
    how |= {"subsampling": sampling} if photometric == "ycbcr" else {}
    tifffile.imwrite(
        sink,
        pixels,
        photometric=photometric,
        compression="jpeg",
        metadata=None,
        compressionargs={"level": quality},
        **cut,
        **how,
    )
    found = ours(sink.getvalue(), cuts=[3])
    # GDAL interpolates colours of half the size in its own way.
    expected = by_gdal(sink.getvalue()) if planar or bands == 1 else by_opencv(sink.getvalue())
    assert np.abs(found.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("bands", [2, 4])
@pytest.mark.parametrize("compress", ["LERC", "LERC_DEFLATE", "LERC_ZSTD"])
def test_an_alpha_band_that_lerc_stores_as_a_mask_is_read(bands, compress):
    stored = drawn((20, 30), bands, "uint8", 0)
    stored[..., -1] = (stored[..., -1] > 99) * 255
    with rasterio.io.MemoryFile() as memory:
        shape = {"height": 20, "width": 30, "count": bands, "dtype": "uint8", "compress": compress}
        how = {"photometric": "RGB" if bands == 4 else "MINISBLACK", "alpha": "YES"}
        with memory.open(driver="GTiff", **shape, **how) as dataset:
            dataset.write(stored.transpose(2, 0, 1))
        data = memory.read()
    found = ours(data, cuts=[7])
    np.testing.assert_array_equal(found, by_gdal(data))
    np.testing.assert_array_equal(found[..., -1], stored[..., -1])
