"""Messages between the pool and a decoding process: typed values here, compact JSON arrays on the socket.

Nothing from a decoding process is unpickled. Fields are written in the order of their declaration, without names: a
reply is parsed for every image.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np

from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.isolation.channel import Channel
from maskfleet.unet.pixels.normalization import DTYPES

POSITION = struct.Struct("<q")
"""Layout, in the shared block, of how far a decoding process is with its group. It only ever grows: from the number of
files still to be read, negative, to the position of the image being decoded."""

RECEIVING = -(2**32)
"""Before the process has the request."""

_MOST_BYTES = 2**20
"""Size of the longest accepted answer; an honest one is a tenth of it."""

_BYTES_PER_SECOND = 1e8
"""Least speed of the socket; usual is ten times as much."""

ITEM_SIZES = {name: np.dtype(name).itemsize for name in DTYPES}
"""Bytes of a number of each type in shared memory."""

_MOST_LETTERS = 1000
"""Length of the longest message about an image."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a decoding process.

    Attributes:
        block: File descriptor of the shared block.
        size: Size of the shared block in bytes.
        cell: Offset in the block of the position of the image being decoded.
        codec: Decoding function, as `module:function`.
        limits: Limits of each image.
    """

    block: int
    size: int
    cell: int
    codec: str
    limits: Limits

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON object."""
        return vars(self) | {"limits": self.limits.to_json()}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Self:
        """Parse the result of `to_json`; other keys are ignored."""
        named = {name: values[name] for name in ("block", "size", "cell", "codec")}
        return cls(**named, limits=Limits.of_json(values["limits"]))


class File(NamedTuple):
    """A file read by the decoding process from its descriptor.

    Attributes:
        etag: State that it must have; see `jobs.images.contract.LocalFile`.
        handed: Whether its descriptor comes with the request. If not, the answer is `Unread`.
    """

    etag: str | None
    handed: bool


class Request(NamedTuple):
    """A group of images to decode.

    Attributes:
        slot: Offset in the shared block of the memory for their pixels.
        images: Size in bytes of each image sent, or its file.
        pages: Page of each image, 0 for the only image of a file; empty if all are such.
    """

    slot: int
    images: Sequence[int | File]
    pages: Sequence[int] = ()

    @property
    def sent(self) -> bool:
        """Whether a message with the bytes of images follows."""
        return any(isinstance(image, int) for image in self.images)

    @property
    def files(self) -> list[File]:
        """Files read by the decoding process."""
        return [image for image in self.images if isinstance(image, File)]

    @property
    def pages_of_files(self) -> list[int]:
        """Page of each of these files; empty if no image is a page."""
        return [page for image, page in zip(self.images, self.pages, strict=False) if isinstance(image, File)]

    def send(self, channel: Channel, data: Sequence[bytes], *, descriptors: Sequence[int], seconds: float) -> None:
        """Send the request.

        Args:
            channel: Channel to the decoding process.
            data: Bytes of the images sent.
            descriptors: Descriptors of the files handed over, in order.
            seconds: Time limit in seconds, beside the time that so many bytes take.

        Raises:
            TimeoutError: The process has not taken it in time.
            OSError: The process has ended.
        """
        channel.send(json.dumps(self).encode(), descriptors=descriptors, seconds=seconds)
        if self.sent:
            joined = b"".join(data)
            channel.send(joined, seconds=seconds + len(joined) / _BYTES_PER_SECOND)

    @classmethod
    def receive(cls, channel: Channel) -> "tuple[Request, list[int], memoryview]":
        """Wait for a request; return it, the descriptors of its files, and the bytes of its images one after another.

        Raises:
            EOFError: The other side is closed.
        """
        message, descriptors = channel.receive_files()
        slot, images, pages = json.loads(message)
        request = cls(slot, [image if isinstance(image, int) else File(*image) for image in images], tuple(pages))
        return request, descriptors, memoryview(channel.receive() if request.sent else b"")


class Placed(NamedTuple):
    """Pixels of an image in the shared block.

    Attributes:
        offset: Offset in the block.
        height: Height of the pixels.
        width: Width of the pixels.
        mask_height: Height of the mask in px.
        mask_width: Width of the mask in px.
        seconds: Seconds of decoding.
        reading: Seconds of reading the file.
        dtype: Name of the type of the pixels, one of `unet.pixels.normalization.DTYPES`.
        levels: Offsets and divisors of the bands; None for plain 8 bits.
    """

    offset: int
    height: int
    width: int
    mask_height: int
    mask_width: int
    seconds: float
    reading: float
    dtype: str = "uint8"
    levels: Sequence[Sequence[float]] | None = None


class Refused(NamedTuple):
    """Reason why an image has no pixels; see `jobs.images.contract.Failure`."""

    error_class: str
    message: str
    seconds: float
    reading: float


class Unread(NamedTuple):
    """The file of an image was not handed over, or could not be read as expected."""


Reply = Placed | Refused | Unread
"""Answer to one image."""

_KINDS: dict[str, type[Placed | Refused | Unread]] = {kind.__name__: kind for kind in (Placed, Refused, Unread)}


def send_replies(channel: Channel, replies: Sequence[Reply]) -> None:
    """Send the answers to a request."""
    channel.send(json.dumps([(type(reply).__name__, *reply) for reply in replies]).encode())


def receive_replies(channel: Channel, request: Request, limits: Limits, *, seconds: float) -> list[Reply]:
    """Receive the answers to a request, up to its last image that fitted into the slot. Believe none unchecked.

    Raises:
        EOFError: The other side is closed.
        TimeoutError: The answers have begun to arrive and do not end in time.
        ValueError: An answer is malformed, or names memory outside the slot.
    """
    possible = partial(_possible, request.slot, request.slot + limits.slot, limits)
    try:
        values = json.loads(channel.receive(seconds=seconds, most=_MOST_BYTES))
        replies = [_KINDS[kind](*fields) for kind, *fields in values]
        checked = all(map(possible, replies, request.images))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("malformed reply") from error
    if not checked or len(replies) > len(request.images):
        raise ValueError("impossible reply")
    return replies


def _possible(first: int, end: int, limits: Limits, reply: Reply, image: int | File) -> bool:
    """Return whether an answer is well-formed, and its pixels lie between two offsets in the block."""
    if type(reply) is Placed:
        offset, height, width, mask_height, mask_width, seconds, reading, dtype, levels = reply
        return (
            type(offset) is type(height) is type(width) is type(mask_height) is type(mask_width) is int
            and height > 0 < width
            and mask_height > 0 < mask_width
            and first <= offset
            and dtype in ITEM_SIZES
            and not offset % ITEM_SIZES[dtype]
            and offset + height * width * limits.channels * ITEM_SIZES[dtype] <= end
            and (dtype == "uint8" if levels is None else are_levels(levels, limits.channels))
            and mask_height * mask_width <= max(limits.max_pixels, height * width)
            and 0 <= seconds < math.inf
            and 0 <= reading < math.inf
        )
    if type(reply) is Refused:
        error_class, message, seconds, reading = reply
        words = type(error_class) is type(message) is str and error_class.isidentifier()
        return words and len(message) <= _MOST_LETTERS and 0 <= seconds < math.inf and 0 <= reading < math.inf
    return isinstance(image, File)


def are_levels(levels: Any, channels: int) -> bool:
    """Return whether a JSON value is finite offsets, and divisors other than 0, of a number of bands."""
    match levels:
        case [[*offsets], [*divisors]] if len(offsets) == len(divisors) == channels:
            return all(type(each) is float and math.isfinite(each) for each in (*offsets, *divisors)) and all(divisors)
    return False


def shortened(message: str) -> str:
    """Return a message about an image in the length that is accepted."""
    return message if len(message) <= _MOST_LETTERS else message[: _MOST_LETTERS - 1] + "…"
