"""The label that a code of a mask stands for: an integer or a colour. Knows nothing about classes.

A grey colour and the integer of its brightness are one label.
"""

from collections.abc import Iterable
from typing import Any

from maskfleet.jobs.training.truth.codes import Kind

Label = int | tuple[int, int, int]

WHITE_FIRST = "a lower number is shown brighter than a higher one"
"""Reason why indices say nothing: some programs mean the index, others the grey."""

_SIGN = 1 << 31


def label_of(code: int, *, shown: bool = False) -> Label:
    """Return the label of a code.

    Args:
        code: Code of `truth.codes_of`.
        shown: Whether an index stands for the colour that a viewer shows, instead of for itself.
    """
    kind, number = Kind(code >> 32), code & 0xFFFFFFFF
    if kind is Kind.NUMBER:
        return number - 2 * _SIGN if number >= _SIGN else number
    if kind is Kind.INDEX and not shown:
        return number >> 24
    return plain(((number >> 16) & 255, (number >> 8) & 255, number & 255))


def plain(value: Any) -> Label:
    """Return a mask value as a label: a colour as a tuple, a grey one as an integer."""
    if isinstance(value, int):
        return value
    red, green, blue = (int(band) for band in value)
    return red if red == green == blue else (red, green, blue)


def values_of(labels: Iterable[Label]) -> tuple[Label, ...]:
    """Return labels as mask values: integers in their order, or colours alone, with black first."""
    ordered = sorted(labels, key=order_of)
    if all(isinstance(label, int) for label in ordered):
        return tuple(ordered)
    return tuple((label, label, label) if isinstance(label, int) else label for label in ordered)


def order_of(label: Label) -> tuple[int, Label]:
    """Return a key to sort labels by: integers, then colours."""
    return (0, label) if isinstance(label, int) else (1, label)


def as_value(value: Any) -> Any:
    """Return a mask value in comparable form: a colour as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def unreliable(codes: Iterable[int]) -> str:
    """Return why the indices of palettes do not say by themselves what they mean; "" if they do.

    Args:
        codes: Codes of all masks.
    """
    colours: dict[int, int] = {}
    for number in sorted(code & 0xFFFFFFFF for code in codes if code >> 32 == Kind.INDEX):
        index, colour = number >> 24, number & 0xFFFFFF
        if colours.setdefault(index, colour) != colour:
            return f"index {index} of a palette is shown in several colours"
    shown = [plain(((colour >> 16) & 255, (colour >> 8) & 255, colour & 255)) for _, colour in sorted(colours.items())]
    greys = [grey for grey in shown if isinstance(grey, int)]
    if len(greys) == len(shown) and greys != sorted(greys):
        return WHITE_FIRST
    return ""
