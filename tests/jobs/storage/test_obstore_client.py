"""obstore beside s3fs: same objects, same keys, and s3fs reports all failures."""

import sys
import time

import pytest
from faults.children import forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskfleet.jobs.errors import Changed, NotFound, StorageError
from maskfleet.jobs.storage import obstore_client as module
from maskfleet.jobs.storage.obstore_client import Access, ObstoreClient
from maskfleet.jobs.storage.s3 import S3Storage


def by_s3fs(url):
    storage = S3Storage(url)
    storage._obstore_is_open = True  # as if obstore were not installed
    return storage


@pytest.fixture
def storage(bucket):
    return S3Storage(f"{bucket}/some/prefix")


@pytest.mark.s3
def test_objects_are_read_and_written_by_obstore(storage, monkeypatch):
    storage.write("a", b"0123456789")
    monkeypatch.setattr(storage, "_retried", None)
    storage.write("b", b"other")
    assert (storage.read("a"), storage.read_range("a", 3, 4), storage.read("b")) == (b"0123456789", b"3456", b"other")
    assert storage.retries == 0


@pytest.mark.s3
def test_a_forked_process_uses_s3fs(storage):
    storage.write("a", b"0123456789")
    fresh = S3Storage(storage.root)

    def in_child():
        storage.write("b", b"from a child")
        return storage.read("a"), fresh.read("a")

    assert forked(in_child, 30).value() == (b"0123456789", b"0123456789")
    assert storage.read("b") == b"from a child"


@pytest.mark.slow
@pytest.mark.s3
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8),
        min_size=1,
        max_size=3,
    ).map("/".join),
    data=st.binary(max_size=100),
)
def test_obstore_and_s3fs_agree_on_keys(storage, key, data):
    if {".", ".."} & set(key.split("/")):
        return
    storage.write(key, data)
    assert by_s3fs(storage.root).read(key) == data
    assert storage.read(key) == data
    if not key.endswith("/"):  # listings drop such keys as folder markers
        assert [entry.path for entry in storage.walk()] == [key]
    storage.delete(key)
    assert not storage.exists(key.strip("/"))


@pytest.mark.s3
@pytest.mark.parametrize(
    "key", ["a%20b", "a+b c", "#1", "ü/ß?.png", "a=b&c", "~x", "per%cent", "'q\"", "a*b", "[1]{2}|^`"]
)
def test_keys_that_look_encoded_are_taken_literally(storage, key):
    storage.write(key, b"this one")
    assert by_s3fs(storage.root).read(key) == b"this one"
    assert storage.read(key) == b"this one"


@pytest.mark.s3
@pytest.mark.parametrize("key", ["a//b", "a/", "/a", "/", "a/b/"])
def test_keys_obstore_would_change_go_through_s3fs(bucket, key):
    storage = S3Storage(bucket)
    storage.write("a", b"another")
    storage.write(key, b"x")
    assert (by_s3fs(bucket).read(key), storage.read(key), storage.read("a")) == (b"x", b"x", b"another")


@pytest.mark.s3
def test_errors_are_reported_by_s3fs(storage):
    storage.write("a", b"one")
    etag = storage.entry("a").etag
    storage.write("a", b"two")
    with pytest.raises(Changed, match="changed after planning"):
        storage.read("a", etag)
    with pytest.raises(NotFound, match="there is no object s3://.*/some/prefix/none"):
        storage.read("none")
    with pytest.raises(NotFound, match="there is no object"):
        storage.read_range("none", 0, 10)
    assert storage._obstore._failures == 0, "a missing or changed object is an answer, not a failure"


@pytest.mark.s3
def test_s3fs_does_everything_without_obstore(bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "maskfleet.jobs.storage.obstore_client")
    storage = S3Storage(bucket)
    storage.write("a", b"x")
    assert storage.read("a") == b"x"
    assert storage._obstore is None


@pytest.mark.s3
def test_a_failing_obstore_is_paused(storage, monkeypatch):
    storage.write("a", b"x")
    asked = []

    def fails(*_, **__):
        asked.append(1)
        raise OSError("no route to host")

    with monkeypatch.context() as patched:
        patched.setattr(module.obstore, "get", fails)
        assert [storage.read("a") for _ in range(9)] == [b"x"] * 9
    assert len(asked) == 3
    clock = time.monotonic
    monkeypatch.setattr(module.time, "monotonic", lambda: clock() + 61)
    monkeypatch.setattr(storage, "_retried", None)
    assert storage.read("a") == b"x"


def test_unreachable_storage_fails_as_without_obstore(monkeypatch):
    for name, value in {
        "ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "y",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    storage = S3Storage("s3://bucket")
    assert storage._opened_obstore() is not None
    storage.GET_SECONDS = 3.0
    with pytest.raises(StorageError, match="storage failed for 3 s"):
        storage.read("a")


@pytest.mark.s3
def test_both_clients_are_reopened_with_new_credentials(storage):
    storage.write("a", b"x")
    before = storage._obstore

    class Expired(Exception):
        def __init__(self):
            self.response = {"Error": {"Code": "ExpiredToken"}}

    async def expired_once():
        if storage._obstore_is_open:
            raise Expired
        return b"answer"

    assert storage._retried(expired_once, "a", 10.0) == b"answer"
    assert storage.read("a") == b"x"
    assert storage._obstore is not before


@pytest.mark.parametrize(
    ("bucket", "endpoint", "reached", "named"),
    [
        ("b", "https://s3.eu-west-1.amazonaws.com", "https://b.s3.eu-west-1.amazonaws.com", True),
        ("b", "https://s3.cn-north-1.amazonaws.com.cn", "https://b.s3.cn-north-1.amazonaws.com.cn", True),
        ("with.dots", "https://s3.eu-west-1.amazonaws.com", "https://s3.eu-west-1.amazonaws.com", False),
        ("b", "http://127.0.0.1:9000", "http://127.0.0.1:9000", False),
    ],
)
def test_the_bucket_goes_into_the_host_name_on_aws_only(bucket, endpoint, reached, named):
    config = ObstoreClient(Access(bucket, endpoint, "eu-west-1", lambda: ("k", "s", None)))._store.config
    assert (config["endpoint"], config["region"]) == (reached, "eu-west-1")
    assert str(config["virtual_hosted_style_request"]).lower() == str(named).lower()


def test_credentials_never_show_in_a_representation():
    access = Access("b", "http://127.0.0.1:9", "eu-west-1", lambda: ("key", "hunter22", "token"))
    quick = ObstoreClient(access)
    assert quick.read("a") is None
    assert "hunter22" not in f"{quick!r} {quick._store!r} {quick._store.config}"
