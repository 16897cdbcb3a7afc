"""A request ends at its deadline, whatever the server does and whichever client asks: finding 17, fault F9."""

import os
import time

import pytest
from faults.proxy import Proxy, Rule

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.storage.s3 import S3Storage

SECONDS = 2.0

pytestmark = pytest.mark.s3


@pytest.fixture(params=["obstore", "s3fs"])
def through(request, bucket, monkeypatch):
    """A proxy before a bucket with a large object, and the bucket's storage behind it, with a short deadline."""
    if request.param == "obstore":
        pytest.importorskip("obstore", reason="needs the extra 'fast'")
        from maskfleet.jobs.storage import obstore_client

        options = obstore_client._client_options
        monkeypatch.setattr(obstore_client, "_client_options", lambda access: options(access._replace(seconds=SECONDS)))
    S3Storage(bucket).write("object", b"x" * 1000)
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        storage = S3Storage(bucket)
        if request.param == "s3fs":
            storage._obstore_is_open = True  # as if obstore were not installed
        assert storage.read("object") == b"x" * 1000
        assert (storage._obstore is not None) == (request.param == "obstore")
        # From here on: opening both clients may take longer.
        storage.GET_SECONDS = storage.PUT_SECONDS = SECONDS
        yield proxy, storage


@pytest.mark.parametrize(
    "fault", [Rule("hang", seconds=60), Rule("drip", method="GET", seconds=1)], ids=["hang", "drip"]
)
def test_finding_17_a_read_ends_at_its_deadline(through, fault):
    proxy, storage = through
    proxy.set(fault)
    began = time.monotonic()
    with pytest.raises(StorageError, match="storage failed for 2 s .*; run the same command again once it is back"):
        storage.read("object")
    assert 0.9 * SECONDS <= time.monotonic() - began <= 1.1 * SECONDS + 0.5  # half a second for a busy machine


@pytest.mark.slow
def test_finding_17_a_write_ends_at_its_deadline(through):
    proxy, storage = through
    proxy.set(Rule("hang", seconds=60))
    began = time.monotonic()
    with pytest.raises(StorageError, match="storage failed for 2 s"):
        storage.write("object", b"")
    assert 0.9 * SECONDS <= time.monotonic() - began <= 1.1 * SECONDS + 0.5


def test_the_fallback_gets_the_rest_of_the_deadline(through):
    proxy, storage = through
    proxy.set(Rule("reset", times=1))
    assert storage.read("object") == b"x" * 1000
