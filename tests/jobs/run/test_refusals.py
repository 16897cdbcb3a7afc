"""Images that storage refuses cost a row each, an outage fails none, and a breaker ends a run that is mostly refused."""

import os
from pathlib import Path

import pytest
from conftest import draw_images, statistics, uploaded
from faults.proxy import Proxy, Rule

from maskfleet.jobs.errors import Denied, StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.commit import Commit
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.attempt import ShardReport
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.refusals import Refusals
from maskfleet.jobs.storage.s3 import S3Storage


def job_of(images, output, weights_file, *sets):
    return Job.of(
        {"input": str(images), "output": str(output), "weights": weights_file},
        ["run.shard_size=4", "run.max_error_rate=1", "cluster.threads=1", *sets],
    )


def failures(output) -> dict[str, tuple[str, str]]:
    rows = (row for row in statistics(output) if row["status"] == "failed")
    return {Path(row["key"]).stem: (row["error_class"], row["error_message"]) for row in rows}


@pytest.mark.s3
def test_finding_3_each_object_that_a_bucket_refuses_costs_its_row(tmp_path, bucket, weights_file, monkeypatch):
    storage = uploaded(draw_images(tmp_path / "in", 12), bucket)
    answers = {
        "image-000": (403, "InvalidObjectState"),
        "image-003": (400, "KMS.DisabledException"),
        "image-004": (400, "InvalidRequest"),
        "image-005": (405, "MethodNotAllowed"),
        "image-008": (403, "AccessDenied"),
        "image-009": (500, "InternalError"),
    }
    rules = [
        Rule("answer", method="GET|HEAD", path=name, status=status, code=code)
        for name, (status, code) in answers.items()
    ]
    server = os.environ["AWS_ENDPOINT_URL_S3"]
    with Proxy(server, *rules) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        job = job_of(f"{bucket}/in", tmp_path / "out", weights_file)
        summary = run(job, on_progress=lambda *_: monkeypatch.setattr(S3Storage, "GET_SECONDS", 3.0))
    assert (summary.ok, summary.failed) == (6, 6)
    found = failures(tmp_path / "out")
    assert {key: error_class for key, (error_class, _) in found.items()} == {
        "image-000": "refused", "image-003": "refused", "image-004": "refused", "image-005": "refused",
        "image-008": "denied", "image-009": "storage",
    }  # fmt: skip
    assert "is archived (Glacier); restore it first" in found["image-000"][1]
    assert "storage failed for 3 s" in found["image-009"][1]
    assert verify(str(tmp_path / "out")).problems == []
    # Once the objects are restored, the next night does them.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    assert run(job_of(f"{bucket}/in", tmp_path / "out", weights_file)).ok == 6
    assert storage.exists("in/part-0/image-000.jpg")


def test_finding_3_a_local_file_with_an_input_error_costs_its_row(tmp_path, weights_file):
    images = draw_images(tmp_path / "in", 8)
    (images / "part-0/bad.png").symlink_to("/proc/self/mem")
    (images / "part-0/dangling.png").symlink_to("nowhere")
    (images / "part-0/itself.png").symlink_to("itself.png")
    summary = run(job_of(images, tmp_path / "out", weights_file))
    assert (summary.ok, summary.failed) == (8, 3)
    found = failures(tmp_path / "out")
    assert {key: error_class for key, (error_class, _) in found.items()} == {
        "bad": "storage", "dangling": "missing", "itself": "missing",
    }  # fmt: skip
    assert found["dangling"][1].endswith("is a link that leads to no file; fetch the file, or delete the link")
    assert verify(str(tmp_path / "out")).problems == []


def test_an_image_alone_in_a_night_costs_its_row_too(tmp_path, weights_file):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.png").symlink_to("/proc/self/mem")
    assert run(job_of(tmp_path / "in", tmp_path / "out", weights_file)).failed == 1
    assert failures(tmp_path / "out")["bad"][0] == "storage"


@pytest.mark.s3
def test_an_outage_fails_no_image(tmp_path, bucket, weights_file, monkeypatch):
    uploaded(draw_images(tmp_path / "in", 8), bucket)
    job = job_of(f"{bucket}/in", tmp_path / "out", weights_file)
    server = os.environ["AWS_ENDPOINT_URL_S3"]
    with Proxy(server, Rule("answer", method="GET", path="/in/", after=3)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with monkeypatch.context() as hurried, pytest.raises(StorageError, match="storage failed for 2 s"):
            # Not from the start: the input is listed at any speed.
            run(job, on_progress=lambda *_: hurried.setattr(S3Storage, "GET_SECONDS", 2.0))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    summary = run(job)
    assert (summary.resumed, summary.ok, summary.failed) == (True, 8, 0)


@pytest.mark.s3
def test_a_bucket_whose_objects_are_all_denied_ends_the_run_with_the_remedy(
    tmp_path, bucket, weights_file, monkeypatch
):
    uploaded(draw_images(tmp_path / "in", 12), bucket)
    server = os.environ["AWS_ENDPOINT_URL_S3"]
    job = job_of(f"{bucket}/in", tmp_path / "out", weights_file, "run.shard_size=1")
    with Proxy(server, Rule("answer", method="GET|HEAD", path="/in/", status=403, code="AccessDenied")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with pytest.raises(
            Denied, match=r"most images of 8 of 8 shards \(denied\); grant .* run the same command again"
        ):
            run(job)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    resumed, night = run(job), run(job)
    assert resumed.resumed
    assert (resumed.ok + night.ok, night.failed) == (12, 0)
    assert verify(str(tmp_path / "out")).problems == []


def report_of(number, images, **errors):
    return ShardReport(
        shard=Shard(str(number), 0, images), commit=Commit(str(number), "a", {}, images, sum(errors.values())),
        committed=True, errors=errors,
    )  # fmt: skip


def test_a_run_that_is_mostly_refused_ends_with_the_remedy():
    refusals = Refusals(shards=3)
    for number in range(2):
        refusals.add(report_of(number, 4, denied=3))
    with pytest.raises(Denied, match=r"most images of 3 of 3 shards \(denied\); grant the credentials s3:GetObject"):
        refusals.add(report_of(2, 4, denied=2, refused=1))


def test_refused_folders_among_others_do_not_end_a_run():
    refusals = Refusals(shards=3)
    for number in range(20):
        refusals.add(report_of(2 * number, 4, corrupt=4))
        refusals.add(report_of(2 * number + 1, 4, denied=4))
