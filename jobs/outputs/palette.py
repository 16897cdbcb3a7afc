"""The colours of Pascal VOC, by class number."""

from collections.abc import Iterator


def voc_palette() -> list[int]:
    """Return 256 RGB colours as a flat list of 768 integers in 0 … 255."""
    return [channel for number in range(256) for channel in _colour(number)]


def _colour(number: int) -> Iterator[int]:
    """Deal the bits of a class number to red, green and blue, filling each from its highest bit."""
    for channel in range(3):
        bits = [(number >> (3 * place + channel)) & 1 for place in range(8)]
        yield sum(bit << (7 - place) for place, bit in enumerate(bits))
