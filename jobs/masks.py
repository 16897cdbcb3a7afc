"""Class maps as PNG files and tar archives, with bytes that depend on the classes alone."""

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COMPRESSION = 1
"""zlib's level: masks are runs, so the fastest level costs a third more bytes and saves half of the time."""


class Encoder:
    """Writes class maps as PNG.

    Args:
        values: What a pixel of each class shows: an int in 0 … 255 each, or three each for RGB. Exactly
            (0, 1) gives a 1-bit image, as Pytorch-UNet's predict.py does.

    Raises:
        ValueError: Values of another kind.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        table = np.asarray(values)
        if table.ndim > 2 or (table.ndim == 2 and table.shape[1] != 3) or table.min() < 0 or table.max() > 255:
            raise ValueError(f"mask values must be integers in 0 … 255, or three such each, got {list(values)}")
        self._table = table.astype(np.uint8)
        self._bilevel = table.tolist() == [0, 1]
        self._identity = table.ndim == 1 and table.tolist() == list(range(len(table)))

    def encode(self, classes: NDArray[np.uint8]) -> bytes:
        """A PNG file of a class map (H, W)."""
        if self._bilevel:
            image = Image.fromarray(classes * np.uint8(255)).convert("1", dither=Image.Dither.NONE)
        else:
            image = Image.fromarray(classes if self._identity else self._table[classes])
        sink = io.BytesIO()
        image.save(sink, "PNG", compress_level=COMPRESSION)
        return sink.getvalue()


def default_values(classes: int) -> tuple[int, ...]:
    """What masks show where neither job nor weights say: 0 and 255 for two classes, else the class's number."""
    return (0, 255) if classes == 2 else tuple(range(classes))


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive of named files; equal members give equal bytes. WebDataset reads it."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return sink.getvalue()


def untar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The regular files in an archive, in its order. Nothing is written to disk."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for header in archive:
            file = archive.extractfile(header) if header.isreg() else None
            if file is not None:
                yield header.name, file.read()
