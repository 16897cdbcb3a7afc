"""Buckets only: pages of listings, credentials, retries."""

import os
import pickle

import pytest

from maskfleet.jobs.errors import Denied, StorageError
from maskfleet.jobs.storage.s3 import S3Storage
from maskfleet.jobs.storage.schemes import open_storage


@pytest.mark.s3
def test_a_listing_follows_its_pages(bucket, monkeypatch):
    storage = open_storage(bucket)
    for number in range(7):
        storage.write(f"p/{number}", b"")
    whole = storage._call
    monkeypatch.setattr(
        storage,
        "_call",
        lambda method, path, **more: whole(method, path, **more, **({"MaxKeys": 3} if "list" in method else {})),
    )
    assert [entry.path for entry in storage.walk("p")] == [f"p/{number}" for number in range(7)]


@pytest.mark.s3
def test_a_wrong_bucket_or_wrong_credentials_are_denied(s3_server, bucket, monkeypatch):
    with pytest.raises(Denied, match="there is no such bucket"):
        open_storage("s3://no-such-bucket-here").write("a", b"")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Denied, match="no usable AWS credentials"):
        open_storage(bucket).read("a")
    if s3_server == "radosgw":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "WRONG")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
        with pytest.raises(Denied, match="access denied") as error:
            open_storage(bucket).read("a")
        assert "hunter22" not in str(error.value)


@pytest.mark.s3
def test_a_pickled_storage_holds_no_secret(bucket):
    storage = S3Storage(bucket)
    storage.write("a", b"x")
    data = pickle.dumps(storage)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in data
    assert pickle.loads(data).read("a") == b"x"


class AnswerError(Exception):
    def __init__(self, code):
        self.response = {"Error": {"Code": code}}


@pytest.mark.parametrize("before", [[], ["SlowDown"], ["503", "SlowDown"]])
def test_finding_16_expired_credentials_are_renewed_whatever_came_before(monkeypatch, before):
    monkeypatch.setattr("time.sleep", lambda _: None)
    storage = S3Storage("s3://bucket")
    opened, answers = [], [*before, "ExpiredToken"]
    filesystem = S3Storage._filesystem

    def counted(self):
        opened.extend([1] if self._fs is None else [])
        return filesystem(self)

    monkeypatch.setattr(S3Storage, "_filesystem", counted)

    async def request():
        if answers:
            raise AnswerError(answers.pop(0))
        return b"answer"

    assert storage._retried(request, "a", 30.0) == b"answer"
    assert len(opened) == 2, "the credentials are read again"
    answers += ["ExpiredToken", "ExpiredToken"]  # new credentials that have expired too
    with pytest.raises(Denied, match="ExpiredToken"):
        storage._retried(request, "a", 30.0)


def test_unreachable_storage_fails_within_its_time_limit(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    storage = S3Storage("s3://bucket")
    storage._filesystem()  # loading the AWS libraries may take longer than the time limit
    storage.GET_SECONDS = 3.0
    with pytest.raises(StorageError, match="storage failed for 3 s .* run the same command again"):
        storage.read("a")
    assert storage.retries > 0
