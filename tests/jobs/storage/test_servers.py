"""S3 servers with their own ways: TLS, checksums, conditions, wrong settings. Rows 2, 8, 8b, 18 and 18b."""

import errno
import os
import time

import pytest
from faults.proxy import Proxy, Rule

from maskfleet.jobs.errors import Denied, JobError, StorageError
from maskfleet.jobs.ledger.commit import probe
from maskfleet.jobs.storage import s3_errors
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.s3 import S3Storage
from maskfleet.jobs.storage.schemes import open_storage

from .tls import Tls, certificate


@pytest.fixture
def secure(bucket, tmp_path, monkeypatch):
    """A bucket behind TLS, and the file of its authority."""
    authority, file = certificate(tmp_path)
    with Tls(os.environ["AWS_ENDPOINT_URL_S3"], file) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        yield bucket, authority


@pytest.mark.s3
def test_row_2_a_server_behind_tls_is_written_without_checksums_behind_the_body(secure, monkeypatch):
    bucket, authority = secure
    monkeypatch.setenv("AWS_CA_BUNDLE", authority)
    storage = S3Storage(bucket)
    storage._obstore_is_open = True  # s3fs writes, as without obstore
    storage.write("a", b"one")
    assert (storage.create("b", b"two"), storage.create("b", b"three")) == (True, False)
    assert (storage.read("a"), storage.read("b")) == (b"one", b"two")
    assert storage.retries == 0
    assert probe(open_storage(bucket)).mode == "worker"


@pytest.mark.s3
def test_row_18b_obstore_trusts_the_authority_of_the_environment(secure, monkeypatch):
    pytest.importorskip("obstore", reason="needs the extra 'fast'")
    bucket, authority = secure
    monkeypatch.setenv("AWS_CA_BUNDLE", authority)
    storage = S3Storage(bucket)
    assert storage._opened_obstore() is not None
    monkeypatch.setattr(storage, "_retried", None)
    storage.write("a", b"one")
    assert storage.read("a") == b"one"


@pytest.mark.s3
def test_what_the_user_says_about_checksums_holds(bucket, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    storage = S3Storage(bucket)
    storage.write("a", b"one")
    config = storage._filesystem()._s3.meta.config
    assert (config.request_checksum_calculation, config.response_checksum_validation) == (
        "when_supported", "when_required",
    )  # fmt: skip


def quick(storage, match):
    """Check that reading, writing and listing raise an error at once."""
    for call in (lambda: storage.read("a"), lambda: storage.write("a", b""), lambda: list(storage.listed())):
        began = time.monotonic()
        with pytest.raises(Denied, match=match) as error:
            call()
        assert time.monotonic() - began < 30  # the limit is 120 s
        assert "\n" not in str(error.value)


@pytest.mark.s3
def test_row_18_an_unknown_authority_is_said_at_once(secure):
    quick(S3Storage(secure[0]), "certificate has an unknown authority; name the authority's file in AWS_CA_BUNDLE")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({"days": -1}, "certificate has expired; renew it"),
        ({"name": "10.9.8.7"}, "certificate is for another name; correct AWS_ENDPOINT_URL_S3"),
    ],
)
def test_row_18_a_bad_certificate_is_said_at_once(bucket, tmp_path, monkeypatch, form, match):
    authority, file = certificate(tmp_path, **form)
    monkeypatch.setenv("AWS_CA_BUNDLE", authority)
    with Tls(os.environ["AWS_ENDPOINT_URL_S3"], file) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        quick(S3Storage(bucket), match)


@pytest.mark.s3
def test_row_18_http_on_a_port_of_https_and_the_reverse_are_said_at_once(bucket, tmp_path, monkeypatch):
    plain = os.environ["AWS_ENDPOINT_URL_S3"]
    with Tls(plain, certificate(tmp_path)[1]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url.replace("https:", "http:"))
        quick(S3Storage(bucket), "speaks https; correct AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", plain.replace("http:", "https:"))
    quick(S3Storage(bucket), "speaks http on this port; write http:// in AWS_ENDPOINT_URL_S3")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("status", "code", "match"),
    [
        (403, "RequestTimeTooSkewed", r"the clock of this machine differs from the server's; set it \(NTP\)"),
        (301, "PermanentRedirect", "lies in another region or at another endpoint; set AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", "lies in another region"),
    ],
)
def test_row_18_a_wrong_clock_and_a_wrong_region_are_said_at_once(bucket, monkeypatch, status, code, match):
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"], Rule("answer", status=status, code=code)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        quick(S3Storage(bucket), match)


class AnswerError(Exception):
    def __init__(self, code, headers=(), **more):
        self.response = {"Error": {"Code": code, **more}, "ResponseMetadata": {"HTTPHeaders": dict(headers)}}


def test_row_18_the_right_region_is_named():
    for error in (
        AnswerError("AuthorizationHeaderMalformed", Region="eu-west-3"),
        AnswerError("301", {"x-amz-bucket-region": "eu-west-3"}),
    ):
        found = s3_errors.final_error(error, "s3://b/k")
        assert str(found) == "s3://b/k: the bucket lies in the region eu-west-3; set AWS_DEFAULT_REGION=eu-west-3"
    skewed = AnswerError("RequestTimeTooSkewed", RequestTime="09:00", ServerTime="12:00")
    assert "(09:00 here, 12:00 there)" in str(s3_errors.final_error(skewed, "s3://b/k"))


def test_row_18_an_access_points_arn_is_no_bucket():
    with pytest.raises(JobError, match="write its alias, s3://…-s3alias/prefix"):
        open_storage("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/prefix")


# Conditions --------------------------------------------------------------------------------------


@pytest.mark.s3
@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "NotImplemented"), (405, "MethodNotAllowed")]
)
def test_row_8_a_server_that_refuses_a_condition_lets_only_the_driver_commit(bucket, monkeypatch, status, code):
    refused = Rule("answer", method="PUT", header="if-none-match:", status=status, code=code)
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"], refused) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        storage = open_storage(bucket)
        assert probe(storage) == ("driver", "the storage refuses If-None-Match")
        assert (storage.create("a", b"one"), storage.create("a", b"two")) == (True, False)
        assert storage.read("a") == b"one"
        assert proxy.injected()["answer"] == 1, "the storage is asked once"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_row_8b_a_folder_without_hard_links_lets_only_the_driver_commit(tmp_path, monkeypatch, number):
    def refuses(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuses)
    storage = LocalStorage(str(tmp_path))
    assert probe(storage) == ("driver", "the file system has no hard links")
    assert (storage.create("a", b"one"), storage.create("a", b"two")) == (True, False)
    assert storage.read("a") == b"one"
    storage.export("b", b"three")
    assert storage.names("") == [".maskfleet-probe", "a", "b"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_row_8b_a_folder_that_cannot_be_synced_is_written(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuses(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses)
    storage = LocalStorage(str(tmp_path))
    assert probe(storage).mode == "worker"
    storage.write("a", b"x")
    assert storage.read("a") == b"x"


def test_a_disk_that_fails_to_sync_is_no_such_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(StorageError, match="Input/output error"):
        LocalStorage(str(tmp_path)).write("a", b"x")
