"""Pages of a file with several images: which there are, and the pixels of each."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.formats import SEVERAL_PAGES, recognised

PAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 30), np.uint8)


def tiff(pages=PAGES, **options):
    sink = io.BytesIO()
    tifffile.imwrite(sink, pages, **{"photometric": "minisblack"} | options)
    return sink.getvalue()


def chain(pages=PAGES, **options):
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, bigtiff=options.pop("bigtiff", False)) as writer:
        for page in pages:
            writer.write(page, metadata=None, contiguous=False, photometric="minisblack", **options)
    return sink.getvalue()


def without_further_headers(data):
    changed = bytearray(data)
    first = int.from_bytes(changed[4:8], "little")
    count = int.from_bytes(changed[first : first + 2], "little")
    changed[first + 2 + 12 * count : first + 6 + 12 * count] = bytes(4)
    return bytes(changed)


def gif(pages=PAGES):
    sink = io.BytesIO()
    first, *others = (Image.fromarray(page) for page in pages)
    first.save(sink, "GIF", save_all=True, append_images=others, optimize=False)
    return sink.getvalue()


STACKS = {
    "a chain of headers": chain(),
    "tiles": chain(tile=(16, 16), compression="deflate", predictor=True),
    "BigTIFF": chain(bigtiff=True),
    "tifffile": tiff(),
    "tifffile, one header": tiff(truncate=True),
    "ImageJ": tiff(imagej=True),
    "ImageJ, one header": without_further_headers(tiff(imagej=True)),
    "OME": tiff(ome=True, metadata={"axes": "ZYX"}),
    "OME, one header": without_further_headers(tiff(ome=True, metadata={"axes": "ZYX"}, contiguous=True)),
    "image depth": tiff(volumetric=True, tile=(2, 16, 16)),
    "image depth of 1 in tiles": tiff(volumetric=True, tile=(1, 16, 16), compression="deflate"),
    "GIF": gif(),
}


def frames(data):
    file = io.BytesIO(data)
    return recognised(file).header(file).frames()


@pytest.mark.parametrize("stack", STACKS)
def test_every_page_of_a_stack_is_counted_and_read(stack):
    data = STACKS[stack]
    assert frames(data) == len(PAGES)
    for number, page in enumerate(PAGES, 1):
        for source in (data, io.BytesIO(data)):
            pixels, size, _ = decode(source, channels=1, page=number)
            assert size == (40, 30)
            np.testing.assert_array_equal(pixels[..., 0], page, err_msg=f"page {number}")
    with pytest.raises(Undecodable, match="no page 6"):
        decode(data, channels=1, page=6)
    with pytest.raises(Undecodable, match="5 frames or pages in one file; set pages = ") as refused:
        decode(data, channels=1)
    assert refused.value.error_class == SEVERAL_PAGES


def test_pages_of_other_sizes_and_types_are_read_as_they_are():
    pages = [np.full((20, 30, 3), 7, np.uint8), np.full((50, 10), 200, np.uint8), np.full((16, 16), 2**15, np.uint16)]
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as writer:
        for page in pages:
            writer.write(page, metadata=None, photometric="rgb" if page.ndim == 3 else "minisblack")
    assert frames(sink.getvalue()) == 3
    assert [decode(sink.getvalue(), channels=3, page=number)[1] for number in (1, 2, 3)] == [
        (20, 30),
        (50, 10),
        (16, 16),
    ]


def test_smaller_copies_and_masks_are_no_pages():
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as writer:
        writer.write(PAGES[0], metadata=None, subifds=1, photometric="minisblack")
        writer.write(PAGES[0, ::2, ::2], metadata=None, subfiletype=1, photometric="minisblack")
        writer.write(PAGES[1], metadata=None, photometric="minisblack")
        writer.write(PAGES[1, ::2, ::2], metadata=None, subfiletype=1, photometric="minisblack")
    assert frames(sink.getvalue()) == 2
    np.testing.assert_array_equal(decode(sink.getvalue(), channels=1, page=2)[0][..., 0], PAGES[1])


def test_a_stack_that_states_more_than_it_holds_is_damaged():
    whole = without_further_headers(tiff(imagej=True))
    with pytest.raises(Undecodable, match="states 5 images and holds"):
        decode(whole[: len(whole) - PAGES[0].nbytes * 2], channels=1)


def test_planes_of_an_ome_file_in_other_files_are_no_pages_of_this_one():
    data = tiff(
        PAGES[0], description='<OME><Image><Pixels SizeZ="9" SizeC="1" SizeT="1"/></Image></OME>', metadata=None
    )
    assert frames(data) == 1


def test_a_gif_of_one_frame_is_an_image():
    np.testing.assert_array_equal(decode(gif(PAGES[:1]), channels=1)[0][..., 0], PAGES[0])
    with pytest.raises(Undecodable) as refused:
        decode(gif(PAGES[:1])[:-400], channels=1)
    assert refused.value.error_class == "corrupt"
