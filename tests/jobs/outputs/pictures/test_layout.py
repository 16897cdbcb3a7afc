"""Pictures side by side and in grids: they fit, and text that is too long is cut or wrapped."""

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.outputs.pictures import layout
from maskfleet.jobs.outputs.pictures.layout import Entry, Tile, grid, side_by_side


def field(width, height, colour=(200, 10, 10)):
    return Image.new("RGB", (width, height), colour)


def pixels_of(sheet, colour=(200, 10, 10)):
    return int((np.asarray(sheet) == colour).all(axis=2).sum())


@pytest.mark.parametrize(("width", "height", "down"), [(60, 80, False), (300, 100, True), (200, 100, False)])
def test_every_panel_is_drawn_in_full(width, height, down):
    panels = [(label, field(width, height)) for label in ("image", "mask", "overlay")]
    sheet = side_by_side(panels, title="a.png", caption="facts", legend=[Entry((0, 250, 0), "class 1: 5 %")])
    assert pixels_of(sheet) == 3 * width * height
    assert pixels_of(sheet, (0, 250, 0)) == 11 * 11
    assert (sheet.height > 3 * height) == down


def test_long_texts_do_not_widen_a_picture():
    long = "s3://bucket/" + "folder/" * 60 + "image.png"
    panels = [("mask", field(400, 300))]
    plain = side_by_side(panels, title="a", caption="b")
    assert side_by_side(panels, title=long, caption=long * 5).width == plain.width
    assert side_by_side(panels, title=long, caption=long * 5).height <= plain.height + 4 * 20
    legend = [Entry((0, 0, 250 - number), f"class {number}: 10.0 %") for number in range(12)]
    assert side_by_side(panels, title="a", caption="b", legend=legend).height > plain.height + 20


@pytest.mark.parametrize("count", [1, 2, 7, 24])
def test_every_tile_of_a_grid_is_drawn(count):
    tiles = [Tile(field(64, 48), f"{number}.png", "why " * number) for number in range(count)]
    assert pixels_of(grid(tiles, title="t", size=64)) == count * 64 * 48


def test_a_tile_without_a_picture_has_a_field():
    sheet = grid([Tile(None, "a.png", "corrupt: ×"), Tile(field(64, 64), "b.png", "")], title="t", size=64)
    assert pixels_of(sheet) == 64 * 64
    assert pixels_of(sheet, (44, 47, 53)) > 64 * 30


def test_text_is_wrapped_and_cut_to_its_width():
    font = layout._font()
    for text in ("a" * 500, "folder/" * 30, "some words " * 40, "×" * 90, "W", ""):
        for width in (20, 100, 333):
            lines = layout._wrapped(text, font, width)
            assert all(font.getlength(line.removesuffix(" …")) <= width for line in lines)
            if len(lines) < 4:
                assert "".join("".join(lines).split()) == "".join(text.replace("×", "x").split())
            cut = layout._cut(text, font, width)
            assert font.getlength(cut) <= width
            assert text.replace("×", "x").endswith(cut.removeprefix("…"))
