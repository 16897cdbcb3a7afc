"""Messages between the pool and a decoding process: typed values here, compact JSON arrays on the socket.

Nothing from a decoding process is unpickled. Fields are written in the order of their declaration, without names: a
reply is parsed for every image.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

from maskfleet.jobs.images.contract import Limits

POSITION = struct.Struct("<q")
"""Layout, in the shared block, of the position in its group of the image being decoded."""

READING = -1
"""Position while the process reads files."""


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
        return asdict(self)

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Self:
        """Parse the result of `to_json`; other keys are ignored."""
        named = {name: values[name] for name in ("block", "size", "cell", "codec")}
        return cls(**named, limits=Limits(**values["limits"]))


class File(NamedTuple):
    """A file read by the decoding process; see `jobs.images.contract.LocalFile`."""

    path: str
    etag: str | None


class Request(NamedTuple):
    """A group of images to decode.

    Attributes:
        slot: Offset in the shared block of the memory for their pixels.
        images: Size in bytes of each image sent, or its file.
    """

    slot: int
    images: Sequence[int | File]

    @property
    def sent(self) -> bool:
        """Whether a message with the bytes of images follows."""
        return any(isinstance(image, int) for image in self.images)

    @property
    def files(self) -> list[File]:
        """Files read by the decoding process."""
        return [image for image in self.images if isinstance(image, File)]

    def send(self, connection: Connection, data: Sequence[bytes]) -> None:
        """Send the request.

        Args:
            connection: Socket to the decoding process.
            data: Bytes of the images sent.
        """
        connection.send_bytes(json.dumps(self).encode())
        if self.sent:
            connection.send_bytes(b"".join(data))

    @classmethod
    def receive(cls, connection: Connection) -> "tuple[Request, memoryview]":
        """Wait for a request; return it and the bytes of its images, one after another.

        Raises:
            EOFError: The other side is closed.
        """
        slot, images = json.loads(connection.recv_bytes())
        request = cls(slot, [image if isinstance(image, int) else File(*image) for image in images])
        return request, memoryview(connection.recv_bytes() if request.sent else b"")


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
    """

    offset: int
    height: int
    width: int
    mask_height: int
    mask_width: int
    seconds: float
    reading: float


class Refused(NamedTuple):
    """Reason why an image has no pixels; see `jobs.images.contract.Failure`."""

    error_class: str
    message: str
    seconds: float
    reading: float


class Unread(NamedTuple):
    """The file of an image could not be read as expected."""


Reply = Placed | Refused | Unread
"""Answer to one image."""

_KINDS: dict[str, type[Placed | Refused | Unread]] = {kind.__name__: kind for kind in (Placed, Refused, Unread)}


def send_replies(connection: Connection, replies: Sequence[Reply]) -> None:
    """Send the answers to a request."""
    connection.send_bytes(json.dumps([(type(reply).__name__, *reply) for reply in replies]).encode())


def receive_replies(connection: Connection) -> list[Reply]:
    """Receive the answers to a request, up to its last image that fitted into the slot.

    Raises:
        EOFError: The other side is closed.
        ValueError: The message is malformed.
    """
    try:
        return [_KINDS[kind](*fields) for kind, *fields in json.loads(connection.recv_bytes())]
    except (KeyError, TypeError) as error:
        raise ValueError("malformed reply") from error
