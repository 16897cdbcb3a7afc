import json
import os
import socket
import threading
from contextlib import suppress

import pytest

from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.protocol import (
    File,
    Placed,
    Refused,
    Request,
    Settings,
    Unread,
    receive_replies,
    send_replies,
    shortened,
)
from maskfleet.jobs.isolation.channel import Channel
from maskfleet.unet.pixels.normalization import Normalization


@pytest.fixture
def ends():
    ours, theirs = map(Channel, socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_requests_arrive_as_they_were_sent(ends, tmp_path):
    ours, theirs = ends
    (tmp_path / "a").write_bytes(b"a")
    request = Request(4096, [3, File(None, handed=True), 2, File("etag", handed=False)])
    with (tmp_path / "a").open("rb") as file:
        request.send(ours, [b"abc", b"de"], descriptors=[file.fileno()], seconds=5)
    received, descriptors, sent = Request.receive(theirs)
    assert (received, bytes(sent)) == (request, b"abcde")
    assert received.files == [File(None, handed=True), File("etag", handed=False)]
    assert [os.read(descriptor, 9) for descriptor in descriptors] == [b"a"]
    os.close(descriptors[0])


def test_a_request_for_files_alone_is_one_message(ends):
    ours, theirs = ends
    Request(0, [File(None, handed=False)]).send(ours, [], descriptors=[], seconds=5)
    received, _, sent = Request.receive(theirs)
    assert (received.sent, bytes(sent)) == (False, b"")
    assert not theirs.waiting(0)


def test_replies_arrive_as_they_were_sent(ends):
    ours, theirs = ends
    placed = Placed(offset=4096, height=2, width=3, mask_height=4, mask_width=6, seconds=0.5, reading=0.25)
    wide = placed._replace(dtype="float32", levels=[[0.0, 1.5, -2.0], [1.0, 65535.0, -1.0]])
    replies = [placed, wide, Refused("corrupt", "damaged", 0.1, 0.0), Unread()]
    send_replies(ours, replies)
    received = receive_replies(theirs, Request(4096, [7, 7, 7, File(None, handed=True)]), Limits(3), seconds=5)
    assert received == replies
    assert [type(reply) for reply in received] == [Placed, Placed, Refused, Unread]


@pytest.mark.parametrize("message", [b"no json", b'[["Placed", 1]]', b'[["Other"]]', b"[[[]]]", b"7", b"[" * 200_000])
def test_malformed_replies_are_refused(ends, message):
    ours, theirs = ends
    sender = threading.Thread(target=ours.send, args=(message,))
    sender.start()
    with pytest.raises(ValueError, match=r".+"):
        receive_replies(theirs, Request(4096, [7]), Limits(3), seconds=5)
    sender.join()


def test_an_answer_that_is_too_long_is_not_read(ends):
    ours, theirs = ends

    def send():
        with suppress(OSError):
            ours.send(bytes(2**21))

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(ValueError, match="2097152 bytes"):
        receive_replies(theirs, Request(4096, [7]), Limits(3), seconds=5)
    theirs.close()
    sender.join()


def test_messages_about_an_image_are_cut():
    assert shortened("a" * 1000) == "a" * 1000
    assert shortened("a" * 1001) == "a" * 999 + "…"


LIES = [
    [("Placed", 0, 1, 1, 1, 1, 0.0, 0.0)],  # before the slot
    [("Placed", 4096, 2000, 2000, 1, 1, 0.0, 0.0)],  # behind it
    [("Placed", 4096, -1, -1, 1, 1, 0.0, 0.0)],
    [("Placed", 4096, 1, 1, 10**9, 10**9, 0.0, 0.0)],
    [("Placed", 4096, True, 1.0, 1, 1, 0.0, 0.0)],
    [("Placed", 4096, "1", 1, 1, 1, 0.0, 0.0)],
    [("Placed", 4096, 1, 1, 1, 1, float("nan"), 0.0)],
    [("Placed", 4096, 1, 1, 1, 1, "soon", 0.0)],
    [("Placed", 4096, 20, 20, 20, 20, 0.0, 0.0, "float32", None)],
    [("Placed", 4096, 1, 1, 1, 1, 0.0, 0.0, "complex64", None)],
    [("Placed", 4096, 1, 1, 1, 1, 0.0, 0.0, [], None)],
    [("Placed", 4097, 1, 1, 1, 1, 0.0, 0.0, "uint16", [[0.0] * 3, [1.0] * 3])],  # not aligned
    [("Placed", 4096, 99, 99, 9, 9, 0.0, 0.0, "float32", [[0.0] * 3, [1.0] * 3])] * 99,
    [("Placed", 4096, 1, 1, 1, 1, 0.0, 0.0, "uint16", [[0.0] * 2, [1.0] * 2])],
    [("Placed", 4096, 1, 1, 1, 1, 0.0, 0.0, "uint16", [[0.0] * 3, [1.0, 0.0, 1.0]])],
    [("Placed", 4096, 1, 1, 1, 1, 0.0, 0.0, "uint16", [[0.0] * 3, [1.0, float("inf"), 1.0]])],
    [("Placed", 4096, 1, 1, 1, 1, 0.0, 0.0, "uint16", [[0.0] * 3, ["1", 1.0, 1.0]])],
    [("Placed", 4096, 1, 1, 1, 1, 0.0, 0.0, "uint16", 7)],
    [("Refused", "two words", "", 0.0, 0.0)],
    [("Refused", "corrupt", "x" * 2000, 0.0, 0.0)],
    [("Refused", ["corrupt"], {}, 0.0, 0.0)],
    [("Unread",)],  # of an image that was sent
    [("Refused", "corrupt", "", 0.0, 0.0)] * 2,
    [("Limits", 3)],
    [[[]]],
    {"Placed": 1},
    7,
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_answers_of_a_process_that_was_taken_over_are_not_believed(ends, lie):
    ours, theirs = ends
    ours.send(json.dumps(lie).encode())
    with pytest.raises(ValueError):
        receive_replies(theirs, Request(4096, [5]), Limits(3, max_pixels=1000), seconds=5)


@pytest.mark.parametrize("normalize", [None, Normalization(scale=10.0, mean=(1.0, 2.0, 3.0))])
def test_settings_survive_json(normalize):
    limits = Limits(3, bands=(4, 3, 2), normalize=normalize)
    settings = Settings(block=3, size=8192, cell=0, codec="a:b", limits=limits)
    assert Settings.of_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_plain_settings_survive_json():
    settings = Settings(block=3, size=8192, cell=0, codec="a:b", limits=Limits(3, scale=0.5, min_side=24))
    assert Settings.of_json(settings.to_json()) == settings
