"""Values that go into decoding and come out of it: limits, encoded images, pixels and failures.

Knows nothing about processes and image formats.
"""

import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray

from maskfleet.unet.pixels.normalization import Levels, Normalization

STREAM_PIXELS = 89_478_485
"""Pixels of the largest image decoded whole; larger ones are read in rows (`jobs.images.streams`). Equals Pillow's own
warning limit."""

_LARGEST_ITEM = 4
"""Bytes of a float32, the largest number in shared memory."""

STREAM = "stream"
"""Error class of an image to be read in rows."""


class Undecodable(Exception):
    """The bytes give no image.

    Args:
        error_class: `empty`, `unidentified`, `corrupt`, `unsupported`, `several_pages`, `too_large`, `too_small`,
            `memory` or `STREAM`.
        message: One sentence with the remedy.

    Attributes:
        error_class: As given.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Failure(NamedTuple):
    """Reason why an image has no mask.

    Attributes:
        stage: `plan`, `fetch`, `decode`, `segment`, `encode` or `worker`.
        error_class: One word for programs.
        message: One sentence for people, with the remedy.
    """

    stage: str
    error_class: str
    message: str


@dataclass(frozen=True)
class Limits:
    """Form of the decoded image, and limits of the cost of decoding.

    Attributes:
        channels: Input channels of the network.
        scale: Resize factor of both sides.
        upright: Whether images are turned as their EXIF orientation says.
        max_pixels: Pixels of the largest accepted image, as stored.
        seconds: Time limit of one image in seconds.
        memory: Memory limit of a process in bytes, beside the shared block.
        min_side: Smallest side accepted by the network, in px.
        bands: Bands that the network takes, counted from 1; empty for all, or the colours.
        normalize: Declared normalisation; None for numbers in [0, 1].
    """

    channels: int
    scale: float = 1.0
    upright: bool = False
    max_pixels: int = STREAM_PIXELS
    seconds: float = 20.0
    memory: int = 2 * 2**30
    min_side: int = 1
    bands: tuple[int, ...] = ()
    normalize: Normalization | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the limits as a JSON object."""
        return asdict(self)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the limits in the result of `to_json`."""
        stated = values["normalize"]
        normalize = None if stated is None else Normalization.of_table(stated)
        return cls(**(dict(values) | {"bands": tuple(values["bands"]), "normalize": normalize}))

    @property
    def slot(self) -> int:
        """Bytes for the pixels of the largest image decoded whole, four for each number, in whole pages."""
        pixels = math.ceil(min(self.max_pixels, STREAM_PIXELS) * max(1.0, self.scale**2))
        page = mmap.ALLOCATIONGRANULARITY
        return -(-pixels * self.channels * _LARGEST_ITEM // page) * page


class Bands(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: The bands that the network takes, (H, W, C), of a type of `unet.pixels.normalization.DTYPES`, scaled.
        size: Height and width of the mask in px.
        levels: See `Decoded`.
    """

    pixels: NDArray[Any]
    size: tuple[int, int]
    levels: Levels | None = None


class LocalFile(NamedTuple):
    """An encoded image read by its decoding process, so its bytes never cross processes.

    Attributes:
        path: Path of the file.
        etag: Expected state of the file, see `jobs.storage.local_file.read`; None if any will do.
        size: Expected size in bytes.
        read: Reads the file in this process, or returns the reason why it cannot. Called if the decoding process could
            not read it.
        page: Number of the page to decode, counted from 1; 0 for the only image of a file.
    """

    path: str
    etag: str | None
    size: int
    read: "Callable[[], bytes | Failure]"
    page: int = 0


class PageBytes(NamedTuple):
    """An encoded image of which one page is decoded.

    Attributes:
        data: Bytes of the file.
        page: Number of the page, counted from 1.
    """

    data: bytes
    page: int


Fetched = bytes | PageBytes | LocalFile | Failure
"""Result of fetching: the bytes of a file, a local file, or a failure."""


class Decoded(NamedTuple):
    """Result of decoding one image.

    Attributes:
        number: Number of the image, as passed in.
        pixels: (H, W, C) in shared memory, of a type of `unet.pixels.normalization.DTYPES`, valid until the next image
            is requested; None on failure.
        size: Height and width of the mask in px; (0, 0) on failure.
        seconds: Seconds of decoding.
        failure: Reason why there are no pixels; None on success.
        reading: Seconds of reading the file in the decoding process; an equal share of its group's time.
        levels: What the network sees of the pixels; None for 8 bits without a declared normalisation, v / 255.
    """

    number: int
    pixels: NDArray[Any] | None
    size: tuple[int, int]
    seconds: float
    failure: Failure | None
    reading: float = 0.0
    levels: Levels | None = None

    @classmethod
    def failed(cls, number: int, failure: Failure, *, seconds: float = 0.0, reading: float = 0.0) -> "Decoded":
        """Return the result of an image without pixels."""
        return cls(number, None, (0, 0), seconds, failure, reading)
