"""Formats a result as aligned lines for people; programs get JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield names and values, aligned, with nested results indented beside their name.

    Counts share one line, a list has one line per entry, and a list of mappings becomes a table with a header.
    """
    names = [_words(name) for name in result]
    width = max(map(len, names), default=0)
    for name, value in zip(names, result.values(), strict=True):
        first, *others = _block(value)
        yield f"{name:<{width}}  {first}".rstrip()
        for line in others:
            yield f"{'':<{width}}  {line}".rstrip()


def _block(value: Any) -> list[str]:
    match value:
        case {} if not value:
            return ["none"]
        case Mapping() if all(isinstance(each, int | float) for each in value.values()):
            return [", ".join(f"{each} {_words(name)}" for name, each in value.items())]
        case Mapping():
            return list(lines(value))
        case [Mapping(), *_]:
            return _columns(value)
        case list() | tuple():
            return [line for each in value for line in _block(each)] or ["none"]
        case None:
            return ["unknown"]
        case _:
            return [str(value)]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    header = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_words(name) for name in header], *([str(row.get(name, "")) for name in header] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def _words(name: str) -> str:
    return str(name).replace("_", " ")
