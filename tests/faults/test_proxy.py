"""The proxy: what each fault does to a request, and what the server sees of it."""

import http.client
import socket
import time
from urllib.parse import urlsplit

import pytest
from faults.proxy import Proxy, Rule

from maskfleet.jobs.storage.s3 import S3Storage


@pytest.fixture
def server(s3_server):
    import os

    return os.environ["AWS_ENDPOINT_URL_S3"]


@pytest.fixture
def through(bucket, server, monkeypatch):
    """A proxy before the bucket's server, and the bucket's storage behind it."""
    with Proxy(server, seed=1) as proxy:
        direct = S3Storage(bucket)
        direct.exists("nothing")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy, S3Storage(bucket), direct


pytestmark = pytest.mark.s3


def test_it_passes_everything_on(through):
    proxy, storage, _ = through
    data = bytes(range(256)) * 5000
    storage.write("a/b", data)
    assert storage.read("a/b") == data
    assert storage.read_range("a/b", 10, 5) == data[10:15]
    assert [entry.path for entry in storage.walk("a")] == ["a/b"]
    assert (storage.create("a/b", b""), storage.create("a/c", b"")) == (False, True)
    storage.delete("a/b")
    assert not storage.exists("a/b")
    assert storage.retries == 0
    assert {method for _, method, *_ in proxy.seen()} == {"GET", "PUT", "HEAD", "DELETE"}


@pytest.mark.parametrize(
    "rule",
    [
        Rule("reset", times=2),
        Rule("lost", times=2),
        Rule("answer", times=2),
        Rule("answer", status=500, code="InternalError", times=2),
        Rule("cut", method="PUT", times=2),
        Rule("truncate", method="GET", times=2),
        Rule("truncate", method="GET", size=1, times=2),
        Rule("delay", seconds=0.05, times=2),
    ],
    ids=lambda rule: f"{rule.fault}-{rule.status}-{rule.size}",
)
def test_storage_survives(rule, through):
    proxy, storage, direct = through
    proxy.set(rule)
    storage.write("object", b"x" * 100_000)
    assert storage.read("object") == direct.read("object") == b"x" * 100_000
    assert proxy.injected() == {rule.fault: 2}


def test_an_answer_that_is_lost_was_given(through):
    proxy, storage, direct = through
    proxy.set(Rule("lost", method="PUT", times=1))
    assert storage.create("object", b"1") is False  # the first try created it, and the second one found it
    assert direct.read("object") == b"1"


def test_a_condition_can_be_ignored_or_refused(through):
    proxy, storage, direct = through
    proxy.set(Rule("ignore", header="if-none-match:"))
    assert (storage.create("object", b"1"), storage.create("object", b"2")) == (True, True)
    assert direct.read("object") == b"2"
    proxy.set(Rule("answer", header="if-none-match:", status=501, code="NotImplemented", times=1))
    host = urlsplit(proxy.url)
    asked = http.client.HTTPConnection(host.hostname, host.port)
    asked.request("PUT", "/bucket/x", b"", {"If-None-Match": "*"})
    assert asked.getresponse().status == 501


def test_a_hang_and_a_drip_take_their_time(through):
    proxy, storage, direct = through
    direct.write("object", b"x" * 10)
    proxy.set(Rule("drip", method="GET", path="object", seconds=0.05))
    began = time.monotonic()
    storage.read("object")
    assert time.monotonic() - began > 0.4
    proxy.set(Rule("hang", seconds=0.3))
    began = time.monotonic()
    host = urlsplit(proxy.url)
    with socket.create_connection((host.hostname, host.port)) as line:
        line.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    assert time.monotonic() - began > 0.25


def test_what_is_drawn_depends_on_the_seed_alone(server):
    def drawn(seed):
        with Proxy(server, Rule("answer", share=0.3), seed=seed) as proxy:
            host = urlsplit(proxy.url)
            for number in range(40):
                asked = http.client.HTTPConnection(host.hostname, host.port)
                asked.request("HEAD", f"/bucket/{number}")
                asked.getresponse()
            return [fault for *_, fault in proxy.seen()]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 4 <= drawn(3).count("answer") <= 20


def test_a_proxy_ends_with_its_owner(server):
    proxy = Proxy(server)
    proxy.close()
    host = urlsplit(proxy.url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host.hostname, host.port))
