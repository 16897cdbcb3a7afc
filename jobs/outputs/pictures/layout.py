"""Pictures side by side or in a grid, with captions. Pure drawing: knows nothing of rows and masks."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from maskfleet.jobs.outputs.overlay import Colour

_GROUND: Colour = (24, 26, 30)
_EMPTY: Colour = (44, 47, 53)
_TEXT: Colour = (236, 238, 242)
_QUIET: Colour = (164, 169, 178)
_GAP = 12
_LINE = 19
_FONT = 14
_MOST_LETTERS = 300
_MOST_LINES = 4
"""Lines of a wrapped caption; the last one is cut."""


class Tile(NamedTuple):
    """A picture of a grid.

    Attributes:
        picture: The picture; None draws an empty field.
        title: First line below it, cut at its beginning if it is too long, as keys differ at their end.
        caption: Further text, wrapped.
    """

    picture: Image.Image | None
    title: str
    caption: str


class Entry(NamedTuple):
    """An entry of a legend: a colour and its meaning."""

    colour: Colour
    text: str


def side_by_side(
    panels: Sequence[tuple[str, Image.Image]], *, title: str, caption: str, legend: Sequence[Entry] = ()
) -> Image.Image:  # fmt: skip
    """Return pictures of one size beside each other, or one below the other if they are wide.

    Args:
        panels: Label and picture of each panel.
        title: First line.
        caption: Text below it, wrapped.
        legend: Colours and their meaning, drawn at the end.
    """
    width, height = panels[0][1].size
    down = width > 2.2 * height
    columns, rows = (1, len(panels)) if down else (len(panels), 1)
    total = max(columns * width + (columns + 1) * _GAP, 360)
    font = _font()
    lines = _wrapped(caption, font, total - 2 * _GAP)
    entries = _placed(legend, font, total - 2 * _GAP)
    top = _GAP + _LINE * (1 + len(lines)) + _GAP // 2
    legend_height = _LINE * (1 + max((row for row, _, _ in entries), default=-1))
    sheet = Image.new("RGB", (total, top + rows * (height + _LINE + _GAP) + legend_height + _GAP), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), _cut(title, font, total - 2 * _GAP), _TEXT, font)
    for number, line in enumerate(lines, 1):
        draw.text((_GAP, _GAP + number * _LINE), line, _QUIET, font)
    for number, (label, picture) in enumerate(panels):
        left = _GAP + (0 if down else number * (width + _GAP))
        above = top + (number * (height + _LINE + _GAP) if down else 0)
        draw.text((left, above), label, _QUIET, font)
        sheet.paste(picture, (left, above + _LINE))
    below = top + rows * (height + _LINE + _GAP)
    for row, left, entry in entries:
        y = below + row * _LINE
        draw.rectangle((_GAP + left, y + 3, _GAP + left + 10, y + 13), entry.colour)
        draw.text((_GAP + left + 16, y), entry.text, _TEXT, font)
    return sheet


def grid(tiles: Sequence[Tile], *, title: str, size: int) -> Image.Image:
    """Return pictures in a grid, each with its caption below.

    Args:
        tiles: The pictures, at most `size` px a side.
        title: First line.
        size: Side of a field in px.
    """
    font = _font()
    columns = min(len(tiles), max(2, round((1.6 * len(tiles)) ** 0.5)))
    captions = [_wrapped(tile.caption, font, size) for tile in tiles]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [
        max(tile.picture.height if tile.picture else size // 2 for tile in (tiles[number] for number in row))
        for row in rows
    ]
    texts = [_LINE * (1 + max(len(captions[number]) for number in row)) for row in rows]
    width = max(columns * (size + _GAP) + _GAP, 360)
    sheet = Image.new("RGB", (width, 2 * _GAP + _LINE + sum(heights) + sum(texts) + _GAP * len(rows)), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), _cut(title, font, width - 2 * _GAP), _TEXT, font)
    top = 2 * _GAP + _LINE
    for row, height, text in zip(rows, heights, texts, strict=True):
        for column, number in enumerate(row):
            left, tile = _GAP + column * (size + _GAP), tiles[number]
            _draw_tile(sheet, draw, tile, captions[number], left=left, top=top, size=size, height=height, font=font)
        top += height + text + _GAP
    return sheet


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, caption: Sequence[str], *, left: int, top: int,
    size: int, height: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:  # fmt: skip
    if tile.picture is None:
        draw.rectangle((left, top, left + size - 1, top + height - 1), _EMPTY)
        draw.text((left + size / 2, top + height / 2), "no picture", _QUIET, font, anchor="mm")
    else:
        shift = (size - tile.picture.width) // 2, (height - tile.picture.height) // 2
        sheet.paste(tile.picture, (left + shift[0], top + shift[1]))
    draw.text((left, top + height + 2), _cut(tile.title, font, size), _TEXT, font)
    for line, words in enumerate(caption, 1):
        draw.text((left, top + height + 2 + line * _LINE), words, _QUIET, font)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return the end of a text that fits, with an ellipsis if something is missing."""
    tail = text[-_MOST_LETTERS:].replace("×", "x")  # the font has no ×
    if len(text) <= _MOST_LETTERS and font.getlength(tail) <= width:
        return tail
    dropped = bisect_left(range(len(tail)), True, key=lambda number: font.getlength(f"…{tail[number:]}") <= width)
    return f"…{tail[dropped:]}"


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Return a text in lines that fit, at most `_MOST_LINES`."""
    lines: list[str] = []
    words = text[: _MOST_LETTERS * _MOST_LINES].replace("×", "x").split()
    for word in chain.from_iterable(_pieces(word, font, width) for word in words):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1] += " …"
    return lines[:_MOST_LINES]


def _pieces(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> Iterator[str]:
    """Yield a word in pieces that fit; paths have no spaces."""
    while len(word) > 1 and font.getlength(word) > width:
        end = bisect_left(range(2, len(word)), True, key=lambda end: font.getlength(word[:end]) > width) + 1
        yield word[:end]
        word = word[end:]
    yield word


def _placed(
    legend: Sequence[Entry], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> list[tuple[int, int, Entry]]:
    """Return each entry of a legend with its row and its place in the row in px."""
    placed: list[tuple[int, int, Entry]] = []
    row, left = 0, 0
    for entry in legend:
        needed = 16 + round(font.getlength(entry.text)) + 2 * _GAP
        if left and left + needed > width:
            row, left = row + 1, 0
        placed.append((row, left, entry))
        left += needed
    return placed
