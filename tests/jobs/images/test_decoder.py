"""The program of a decoding process, run in this one."""

import io
import mmap
import os
import socket
import threading
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.images import decoder as module
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decoder import FileReader, program
from maskfleet.jobs.images.decoders import CODEC
from maskfleet.jobs.images.protocol import File, Placed, Refused, Request, Settings, Unread, receive_replies
from maskfleet.jobs.isolation.block import shared_block
from maskfleet.jobs.isolation.channel import Channel

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def png():
    sink = io.BytesIO()
    Image.fromarray(PIXELS).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def asked(monkeypatch):
    """Asks a decoder that runs in a thread; yields its replies and the shared block."""
    monkeypatch.setattr(module, "limit_time", lambda _: None)
    ours, theirs = map(Channel, socket.socketpair())
    limits = Limits(3, max_pixels=1000)
    block = shared_block(mmap.PAGESIZE + limits.slot)
    settings = Settings(block=block.descriptor, size=len(block.map), cell=0, codec=CODEC, limits=limits)
    serve = program(settings.to_json())

    def run():
        with suppress(EOFError):
            serve(theirs)

    thread = threading.Thread(target=run)
    thread.start()

    def ask(images, data, descriptors=()):
        request = Request(mmap.PAGESIZE, images)
        request.send(ours, data, descriptors=descriptors, seconds=20)
        return receive_replies(ours, request, limits, seconds=20), block.map

    yield ask
    ours.close()
    thread.join(60)
    block.close()


def test_replies_are_typed_and_pixels_lie_where_they_say(asked, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    images = [len(png()), File(None, handed=True), 4, File(None, handed=False)]
    with (tmp_path / "a.png").open("rb") as file:
        replies, block = asked(images, [png(), b"text"], [file.fileno()])
    sent, read, refused, unread = replies
    for reply in (sent, read):
        assert isinstance(reply, Placed)
        assert (reply.height, reply.width, reply.mask_height, reply.mask_width) == (20, 30, 20, 30)
        assert block[reply.offset : reply.offset + PIXELS.size] == PIXELS.tobytes()
    assert sent.reading == 0 < read.reading
    assert isinstance(refused, Refused)
    assert (refused.error_class, unread) == ("unidentified", Unread())


def test_a_reply_ends_with_the_last_image_that_fits(asked):
    replies, _ = asked([len(png())] * 4, [png()] * 4)
    assert 0 < len(replies) < 4 or Limits(3, max_pixels=1000).slot >= 4 * PIXELS.size


def test_files_are_closed_and_counted_down(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    left = []
    reader = FileReader(left.append)
    descriptors = [os.open(tmp_path / name, os.O_RDONLY) for name in "ab"]
    files = [File(None, handed=True), File("another", handed=True), File(None, handed=False)]
    assert reader.read(files, descriptors)[0] == [b"a", None, None]
    assert left[0] == -3
    assert left == sorted(left)
    for descriptor in descriptors:
        with pytest.raises(OSError):
            os.fstat(descriptor)
