"""The program of a decoding process, run in this one."""

import io
import mmap
import threading
import time
from multiprocessing import Pipe

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.images import decoder as module
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decoder import FileReader, serve
from maskfleet.jobs.images.decoders import CODEC
from maskfleet.jobs.images.isolation import shared_block
from maskfleet.jobs.images.protocol import File, Placed, Refused, Request, Settings, Unread, receive_replies
from maskfleet.jobs.storage import local_file

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def png():
    sink = io.BytesIO()
    Image.fromarray(PIXELS).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def asked(monkeypatch):
    """Asks a decoder that runs in a thread; yields its replies and the shared block."""
    for name in ("limit_memory", "limit_time", "be_quiet"):
        monkeypatch.setattr(module, name, lambda *_: None)
    ours, theirs = Pipe()
    limits = Limits(3, max_pixels=1000)
    block = shared_block(mmap.PAGESIZE + limits.slot)
    settings = Settings(block=block.descriptor, size=len(block.map), cell=0, codec=CODEC, limits=limits)
    thread = threading.Thread(target=serve, args=(settings, theirs))
    thread.start()
    assert ours.recv_bytes() == b"ready"

    def ask(images, data):
        Request(mmap.PAGESIZE, images).send(ours, data)
        return receive_replies(ours), block.map

    yield ask
    ours.close()
    thread.join(60)
    block.close()


def test_replies_are_typed_and_pixels_lie_where_they_say(asked, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    images = [len(png()), File(str(tmp_path / "a.png"), None), 4, File(str(tmp_path / "absent"), None)]
    replies, block = asked(images, [png(), b"text"])
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


def test_slow_files_are_read_in_parallel(tmp_path, monkeypatch):
    files = []
    for number in range(16):
        (tmp_path / str(number)).write_bytes(bytes([number]))
        files.append(File(str(tmp_path / str(number)), None))
    reader = FileReader()
    at_once, most = [], []
    real = local_file.read

    def slow(path, etag):
        at_once.append(path)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.remove(path)
        return real(path, etag)

    monkeypatch.setattr(local_file, "read", slow)
    data, first = reader.read(files)
    assert (data, max(most)) == ([bytes([number]) for number in range(16)], 1)
    most.clear()
    data, second = reader.read(files)
    assert data == [bytes([number]) for number in range(16)]
    assert max(most) > 1
    assert 0 < second < first
    monkeypatch.setattr(local_file, "read", real)
    reader.read(files)
    monkeypatch.setattr(local_file, "read", slow)
    most.clear()
    reader.read(files)
    assert max(most) == 1
