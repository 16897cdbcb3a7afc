"""Buckets of other people: without credentials, with requester pays, at a server of their own. Row 11."""

import os
import pickle

import pytest
import s3fs
from conftest import draw_images, statistics, uploaded
from faults.proxy import Proxy, Rule

from maskfleet.jobs.errors import Denied
from maskfleet.jobs.inputs.fetch import options_of
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.contract import Options
from maskfleet.jobs.storage.s3 import S3Storage
from maskfleet.jobs.storage.schemes import open_storage, open_with


def clients(bucket, options):
    """Yield the storage of a bucket, read by obstore and by s3fs."""
    for without in (False, True):
        storage = S3Storage(bucket, options)
        storage._obstore_is_open = without
        yield storage


@pytest.fixture
def public(bucket, s3_server):
    """A bucket that everybody may read, with a few images below `in/`."""
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    name = bucket.removeprefix("s3://")
    open_storage(bucket).write("a", b"x")
    filesystem.call_s3("put_bucket_acl", Bucket=name, ACL="public-read")
    filesystem.call_s3("put_object_acl", Bucket=name, Key="a", ACL="public-read")
    return bucket


@pytest.mark.s3
def test_row_11_a_public_bucket_is_read_without_credentials(public, s3_server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for storage in clients(public, Options(anonymous=True)):
        assert storage.read("a") == b"x"
        assert [entry.path for entry in storage.walk()] == ["a"]
        assert storage.entry("a").size == 1
        if s3_server == "radosgw":
            with pytest.raises(Denied, match="access denied"):
                storage.write("b", b"")
    assert next(iter(clients(public, Options(anonymous=True))))._opened_obstore() is not None
    with pytest.raises(Denied, match="read a public bucket with input_options.anonymous"):
        open_storage(public).read("a")


@pytest.mark.s3
@pytest.mark.parametrize("asks", [True, False])
def test_row_11_requester_pays_is_agreed_to_with_every_request(bucket, monkeypatch, asks):
    open_storage(bucket).write("a", b"x")
    agreed = Rule("delay", header="x-amz-request-payer: requester")
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"], agreed) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        for storage in clients(bucket, Options(requester_pays=asks)):
            proxy.set(agreed)
            assert (storage.read("a"), storage.entry("a").size, len(list(storage.walk()))) == (b"x", 1, 1)
            assert all(bool(fault) == asks for *_, fault in proxy.seen())


@pytest.mark.s3
def test_row_11_the_input_has_a_server_of_its_own(tmp_path, bucket, weights_file, monkeypatch):
    uploaded(draw_images(tmp_path / "in", 4), bucket)
    server = os.environ["AWS_ENDPOINT_URL_S3"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    table = {"input": f"{bucket}/in", "output": str(tmp_path / "out"), "weights": weights_file}
    job = Job.of(table, [f"input_options.endpoint={server}"])
    assert run(job).ok == 4
    assert {row["status"] for row in statistics(tmp_path / "out")} == {"ok"}
    # Later readers of the images find them as the run did.
    assert open_output(str(tmp_path / "out")).overlay("image-000.jpg").size == (64, 48)


def test_the_input_has_the_profile_of_the_job_unless_it_has_its_own():
    table = {"input": "a", "output": "b", "weights": "nuclei", "profile": "night"}
    assert options_of(Job.of(table)) == Options(profile="night")
    own = {"profile": "partner", "endpoint": "https://s3.example.org", "anonymous": True, "requester_pays": True}
    job = Job.of(table | {"input_options": own})
    assert options_of(job) == Options("partner", "https://s3.example.org", anonymous=True, requester_pays=True)
    assert open_with("s3://b", options_of(job)).options == options_of(job)
    assert pickle.loads(pickle.dumps(S3Storage("s3://b", options_of(job)))).options == options_of(job)


def test_options_of_the_input_are_no_part_of_the_fingerprint():
    table = {"input": "a", "output": "b", "weights": "nuclei"}
    job, other = Job.of(table), Job.of(table, ["input_options.anonymous=true"])
    weights = load_weights(job)
    assert fingerprint_of(job, weights) == fingerprint_of(other, weights)
