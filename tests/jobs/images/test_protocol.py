from multiprocessing import Pipe

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
)


def test_requests_arrive_as_they_were_sent():
    ours, theirs = Pipe()
    request = Request(4096, [3, File("a.png", None), 2, File("b.png", "etag")])
    request.send(ours, [b"abc", b"de"])
    received, sent = Request.receive(theirs)
    assert (received, bytes(sent)) == (request, b"abcde")
    assert received.files == [File("a.png", None), File("b.png", "etag")]


def test_a_request_for_files_alone_is_one_message():
    ours, theirs = Pipe()
    Request(0, [File("a.png", None)]).send(ours, [])
    received, sent = Request.receive(theirs)
    assert (received.sent, bytes(sent)) == (False, b"")
    assert not theirs.poll()


def test_replies_arrive_as_they_were_sent():
    ours, theirs = Pipe()
    placed = Placed(offset=4096, height=2, width=3, mask_height=4, mask_width=6, seconds=0.5, reading=0.25)
    replies = [placed, Refused("corrupt", "damaged", 0.1, 0.0), Unread()]
    send_replies(ours, replies)
    received = receive_replies(theirs)
    assert received == replies
    assert [type(reply) for reply in received] == [Placed, Refused, Unread]


@pytest.mark.parametrize("message", [b"no json", b'[["Placed", 1]]', b'[["Other"]]', b"[[[]]]", b"7"])
def test_malformed_replies_are_refused(message):
    ours, theirs = Pipe()
    ours.send_bytes(message)
    with pytest.raises(ValueError, match=r".+"):
        receive_replies(theirs)


def test_settings_survive_json():
    settings = Settings(block=3, size=8192, cell=0, codec="a:b", limits=Limits(3, scale=0.5, min_side=24))
    assert Settings.of_json(settings.to_json() | {"socket": 7}) == settings
