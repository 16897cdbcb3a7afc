"""Files for fuzzing: sound ones of every format and kind, and damaged ones from a seed."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

SIZE = 61, 43
"""Width and height of the sound images."""


def _pixels(*channels, dtype=np.uint8):
    values = np.random.default_rng(7).integers(0, 2**15, (SIZE[1], SIZE[0], *channels))
    return (values if dtype != np.uint8 else values // 128).astype(dtype)


def _saved(image, format_, **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


def _oriented(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def _modes():
    rgb, grey = Image.fromarray(_pixels(3)), Image.fromarray(_pixels())
    return {
        "RGB": rgb, "L": grey, "1": grey.convert("1"), "P": rgb.quantize(16), "RGBA": rgb.convert("RGBA"),
        "LA": grey.convert("LA"), "CMYK": rgb.convert("CMYK"), "YCbCr": rgb.convert("YCbCr"), "LAB": Image.merge("LAB", rgb.split()),
        "I;16": Image.fromarray(_pixels(dtype=np.uint16)), "I": Image.fromarray(_pixels(dtype=np.int32)),
        "F": Image.fromarray((_pixels() / 255).astype(np.float32)),
    }  # fmt: skip


def _jpegs(modes):
    for mode in ("RGB", "L", "CMYK"):
        yield _saved(modes[mode], "JPEG", quality=80)
        yield _saved(modes[mode], "JPEG", progressive=True, quality=60)
    for turn in range(9):
        yield _saved(modes["RGB"], "JPEG", exif=_oriented(turn), subsampling=turn % 3)
    yield _saved(modes["RGB"], "MPO", save_all=True, append_images=[modes["RGB"]])
    for sampling in ("4:2:0", "4:2:2"):
        yield _saved(modes["CMYK"], "JPEG", subsampling=sampling)
    yield _saved(modes["RGB"], "JPEG", restart_marker_blocks=5)
    for bands in ((), (3,)):
        twelve, sixteen = _pixels(*bands, dtype=np.uint16) >> 3, _pixels(*bands, dtype=np.uint16)
        yield imagecodecs.jpeg8_encode(twelve, bitspersample=12)
        yield imagecodecs.jpeg8_encode(twelve, lossless=True, bitspersample=12)
        yield imagecodecs.jpeg8_encode(sixteen, lossless=True, bitspersample=16)
        yield imagecodecs.jpegls_encode(sixteen)
        yield imagecodecs.jpegls_encode(_pixels(*bands))


def _pngs(modes):
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        yield _saved(modes[mode], "PNG")
    yield _saved(modes["RGB"], "PNG", save_all=True, append_images=[modes["RGB"].transpose(Image.Transpose.ROTATE_180)])
    yield _saved(modes["RGB"], "PNG", exif=_oriented(6), dpi=(72, 72), icc_profile=bytes(500))
    yield _saved(modes["L"], "PNG", transparency=7)
    for bands in ((2,), (3,), (4,)):
        yield imagecodecs.png_encode(_pixels(*bands, dtype=np.uint16))
    wrong = _chunk(b"tEXt", b"a\0b")[:-1] + b"!"
    for place in (33, -12):
        data = _saved(modes["RGB"], "PNG")
        yield data[:place] + wrong + data[place:]


def _tiffs(modes):
    for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "LAB", "YCbCr", "I;16", "I", "F"):
        yield _saved(modes[mode], "TIFF")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_deflate"):
        yield _saved(modes["RGB"], "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield _saved(modes["1"], "TIFF", compression=compression)
    for turn in range(1, 9):
        yield _saved(modes["RGB"], "TIFF", exif=_oriented(turn))
    yield _saved(modes["L"], "TIFF", big_tiff=True)
    yield from _tiffs_by_tags()
    yield _saved(modes["L"], "TIFF", save_all=True, append_images=[modes["L"]])


def _tiffs_by_tags():
    """Yield what Pillow does not write: depths, planes, tiles, compressions, and sparse files."""
    for dtype in ("uint16", "uint32", "int8", "int16", "float16", "float32", "float64", "complex64"):
        yield _written((_pixels() / 256).astype(dtype), photometric="minisblack", byteorder=">")
        yield _written((_pixels(3) / 256).astype(dtype), photometric="rgb", tile=(16, 32), bigtiff=True)
    for bits in (2, 4, 10, 12, 14):
        stored = _pixels(dtype=np.uint16) % 2**bits
        yield _written(stored.astype(np.uint8 if bits < 8 else np.uint16), bitspersample=bits)
    for compression in ("lzw", "zlib", "zstd", "lzma", "packbits", "lerc", "jpeg2000", "jpegxl", "webp", "jpeg", "png"):
        yield _written(_pixels(3), photometric="rgb", compression=compression, tile=(32, 32))
    for predictor, dtype in ((2, "uint16"), (3, "float32")):
        yield _written(_pixels(3).astype(dtype), photometric="rgb", compression="zlib", predictor=predictor)
    yield _written(np.moveaxis(_pixels(5, dtype=np.uint16), 2, 0), planarconfig="separate", rowsperstrip=7)
    yield _written(_pixels(), photometric="miniswhite", rowsperstrip=5, compression="lzw")
    yield _written(_pixels(2, dtype=np.uint16), photometric="minisblack", extrasamples=["unspecified"])
    stack = io.BytesIO()
    tifffile.imwrite(stack, _pixels()[None].repeat(3, 0), imagej=True)
    yield stack.getvalue()


def _written(pixels, *, byteorder="<", bigtiff=False, **how):
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(pixels, metadata=None, **{"photometric": "minisblack"} | how)
    return sink.getvalue()


def _webps(modes):
    for mode in ("RGB", "RGBA"):
        yield _saved(modes[mode], "WEBP")
        yield _saved(modes[mode], "WEBP", lossless=True)
    yield _saved(modes["RGB"], "WEBP", save_all=True, append_images=[modes["RGBA"]], duration=9)
    yield _saved(modes["RGB"], "WEBP", exif=_oriented(8))


def _bmps(modes):
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        yield _saved(modes[mode], "BMP")


def _gifs(modes):
    for mode in ("P", "L", "1"):
        yield _saved(modes[mode], "GIF")
    yield _saved(modes["P"], "GIF", transparency=3, interlace=1)
    yield _saved(modes["P"], "GIF", save_all=True, append_images=[modes["L"]])


def _avifs(modes):
    for mode in ("RGB", "RGBA", "L"):
        yield _saved(modes[mode], "AVIF")
    yield _saved(modes["RGB"], "AVIF", exif=_oriented(6))
    yield _saved(modes["RGB"], "AVIF", save_all=True, append_images=[modes["RGB"]])
    for bits in (10, 12):
        yield imagecodecs.avif_encode(_pixels(3, dtype=np.uint16) % 2**bits, bitspersample=bits)


def _jpegs_2000(modes):
    for mode in ("RGB", "RGBA", "L", "LA", "I;16", "YCbCr"):
        yield _saved(modes[mode], "JPEG2000")
    for kind in ("jp2", "j2k"):
        yield imagecodecs.jpeg2k_encode(_pixels(3, dtype=np.uint16), level=0, codecformat=kind)
    yield imagecodecs.jpeg2k_encode(_pixels(dtype=np.int16), level=0)


def _jpegs_xl(_):
    for bands in ((), (2,), (3,), (4,)):
        for boxed in (True, False):
            yield imagecodecs.jpegxl_encode(_pixels(*bands), lossless=boxed, usecontainer=boxed)
    yield imagecodecs.jpegxl_encode(_pixels(3, dtype=np.uint16) % 4096, lossless=True, bitspersample=12)
    yield imagecodecs.jpegxl_encode((_pixels(3) / 255).astype(np.float32), lossless=True)


def _arrays(_):
    kinds = (np.bool_, np.uint8, np.uint16, np.int64, np.float16, np.float64, np.complex64, "S3", object)
    for number, kind in enumerate(kinds):
        sink = io.BytesIO()
        array = _pixels(*((3,) if number % 2 else ())).astype(kind)
        np.save(sink, np.asfortranarray(array) if number % 3 else array, allow_pickle=True)
        yield sink.getvalue()


SOUND = {
    "JPEG": _jpegs, "PNG": _pngs, "TIFF": _tiffs, "WebP": _webps, "BMP": _bmps, ".npy": _arrays, "GIF": _gifs, "AVIF": _avifs,
    "JPEG 2000": _jpegs_2000, "JPEG XL": _jpegs_xl,
}  # fmt: skip
"""By name of the format, a function that yields sound files of it."""


def sound() -> dict[str, list[bytes]]:
    """Return sound files by format."""
    modes = _modes()
    return {name: list(make(modes)) for name, make in SOUND.items()}


def fuzzed(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield files with the name of the format that they began as: each format in turn, and bombs among them."""
    rng = random.Random(seed)
    whole = sound()
    names = list(whole)
    bombs = list(_bombs())
    for number in range(count):
        name = names[number % len(names)]
        data = rng.choice(whole[name])
        if rng.random() < 0.05:
            yield "bomb", rng.choice(bombs)
            continue
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            data = rng.choice(DAMAGES)(data, rng, whole)
        yield name, data


def _flips(data, rng, _):
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flips_in_the_head(data, rng, whole):
    return _flips(data[:128], rng, whole) + data[128:]


def _numbers(data, rng, _):
    """Overwrite a place with a number that programs stumble over."""
    place = rng.randrange(min(len(data), 400) + 1)
    size = rng.choice("BHIQ")
    number = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))
    value = struct.pack(rng.choice("<>") + size, number % 2 ** (8 * struct.calcsize("<" + size)))
    return data[:place] + value + data[place + len(value) :]


def _cut(data, rng, _):
    return data[: rng.randrange(len(data) + 1)]


def _emptied(data, rng, _):
    return b"" if rng.random() < 0.2 else data


def _spliced(data, rng, whole):
    other = rng.choice(whole[rng.choice(list(whole))])
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def _doubled(data, rng, _):
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:last] + data[first:last] * rng.choice((1, 2, 200)) + data[last:]


def _without(data, rng, _):
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[last:]


def _zeroed(data, rng, _):
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + rng.choice((b"\0", b"\xff", b"%")) * (last - first) + data[last:]


def _of_another_type(data, rng, whole):
    head = rng.choice(
        (
            b"GIF89a",
            b"%PDF-1.7\n",
            b"PK\3\4",
            b"<html>",
            b"{}",
            b"\x1f\x8b\x08",
            b"BM",
            b"II*\0",
            b"MM\0+",
            b"\x93NUMPY",
        )
    )
    return head + data[len(head) :]


DAMAGES = (
    _flips, _flips_in_the_head, _flips_in_the_head, _numbers, _numbers, _numbers, _cut, _emptied, _spliced, _doubled,
    _without, _zeroed, _of_another_type,
)  # fmt: skip


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, *chunks, depth=8, colour=2):
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IEND", b"")


def _tiff(entries, tail=b""):
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + tail


def _npy(shape, dtype="|u1"):
    head = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def _bombs() -> Iterator[bytes]:
    """Yield small files that claim, or hold, far more."""
    zeros = zlib.compress(bytes(2**26), 9)
    for side in (9_000, 30_000, 2**31 - 1):
        yield _png(side, side, _chunk(b"IDAT", zeros))
    yield _png(8_000, 8_000, _chunk(b"IDAT", zeros), depth=16, colour=6)
    yield _png(50, 50, _chunk(b"zTXt", b"k\0\0" + zeros), _chunk(b"IDAT", zeros))
    yield _png(50, 50, _chunk(b"iCCP", b"k\0\0" + zeros), _chunk(b"IDAT", zeros))
    yield _png(50, 50, *[_chunk(b"tEXt", b"k\0" + bytes(5000))] * 2000)
    sizes = [(256, 4, 1, 9_000), (257, 4, 1, 9_000), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1), (278, 4, 1, 9_000)]
    for compression in (1, 5, 8, 32773):
        data = zeros if compression == 8 else bytes(1000)
        place = [(259, 3, 1, compression), (273, 4, 1, 200), (279, 4, 1, len(data))]
        yield _tiff(sizes + place, bytes(200) + data)
    yield _tiff([(256, 4, 2**30, 8), (257, 4, 2**30, 8)])
    yield b"II*\0" + struct.pack("<IHI", 8, 0, 8)  # a page that follows itself
    yield b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63)
    for shape in ((10**5, 10**5), (10**9, 10**9, 10**9), (-1, 5), (0, 3), (2**62, 2), (20_000, 40_000)):
        yield _npy(shape)
        yield _npy(shape, "<c16")
    yield _npy((5, 5), "|O") + b"\x80\x04]\x94."
    yield _npy("(" * 3000 + ")" * 3000)
    yield (
        b"BM"
        + struct.pack("<IHHI", 10**9, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 50_000, -50_000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    yield (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 8_000, 8_000, 1, 8, 1, 0, 0, 0, 256, 0)
    )
    vp8l = struct.pack("<BI", 0x2F, (16383 - 1) | (16383 - 1) << 14)
    yield b"RIFF" + struct.pack("<I", 12 + len(vp8l) + 1) + b"WEBPVP8L" + struct.pack("<I", len(vp8l)) + vp8l + bytes(1)
    yield _saved(Image.new("L", (9_000, 9_000)), "JPEG", quality=1)[:-20]
