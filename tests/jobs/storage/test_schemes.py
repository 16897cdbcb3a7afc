"""Storage by URL."""

import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.s3 import S3Storage
from maskfleet.jobs.storage.schemes import is_local, open_storage, split_url


def test_a_url_is_split_into_root_and_path():
    assert split_url("s3://b/k/x.png") == ("s3://b", "k/x.png")
    assert split_url("/a/b") == split_url("file:///a/b") == split_url("file://localhost/a/x/%2e./b") == ("/", "a/b")
    with pytest.raises(JobError, match="file://server/x names the machine 'server'; write file:///"):
        split_url("file://server/x")


def test_the_scheme_gives_the_kind_of_storage(tmp_path):
    for url in (str(tmp_path), f"file://{tmp_path}"):
        storage = open_storage(url)
        assert isinstance(storage, LocalStorage)
        assert (storage.root, storage.local_path("a/b"), is_local(url)) == (str(tmp_path), f"{tmp_path}/a/b", True)
    storage = open_storage("s3://b/prefix/", profile="night")
    assert isinstance(storage, S3Storage)
    assert (storage.root, storage.options.profile) == ("s3://b/prefix", "night")
    assert (storage.local_path("a/b"), is_local("s3://b/a")) == (None, False)
    assert not is_local("file://server/x")
    assert not is_local("https://example.org/x")


def test_an_unknown_scheme_or_a_missing_bucket_is_a_job_error():
    for call in (open_storage, split_url):
        with pytest.raises(JobError, match="storage must be a local path or s3://"):
            call("gs://b/x")
    with pytest.raises(JobError, match="names no bucket"):
        open_storage("s3://")
