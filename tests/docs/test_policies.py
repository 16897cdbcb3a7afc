"""The policies of SECURITY.md, each given to a user of its own on the real S3 server."""

import json

import pytest
from conftest import draw_pairs
from docs.pages import blocks

from docs import world
from maskfleet.jobs.errors import Denied, MaskfleetError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.gc import collect
from maskfleet.jobs.outputs.report.run import run
from maskfleet.jobs.outputs.report.write import report
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.tools.doctor import places
from maskfleet.jobs.tools.doctor.contract import Subject
from maskfleet.jobs.training.finetune import finetune

RUN, READ, GC = [json.loads(block.text) for block in blocks("SECURITY.md") if block.language == "json"]
INPUT, OUTPUT = "s3://microscopy/plates/", "s3://microscopy/masks/"


@pytest.fixture
def become(s3_user, monkeypatch):
    """Act as a new user with one policy."""

    def acted(policy):
        for name, value in s3_user(policy).items():
            monkeypatch.setenv(name, value)

    return acted


def finetuned(job, folder):
    """Return the job with a training of three checkpoints."""
    images, masks = draw_pairs(folder, 8)
    settings = {"images": str(images), "masks": str(masks), "gate": "off", "steps": 3, "save_every": 1, "crop": 32}
    return Job.of(
        job.model_dump(mode="json", exclude_none=True)
        | {"finetune": settings | {"batch_size": 1, "validation_share": 0.5, "validate_every": 3}}
    )


@pytest.mark.slow
@pytest.mark.s3
def test_each_policy_of_the_page_suffices_and_grants_no_more(become, weights_file, tmp_path):
    world.fill_bucket()
    job = Job.of({"input": INPUT, "output": OUTPUT, "weights": weights_file, "run": {"shard_size": 2}})
    become(RUN)
    assert run(job).ok == 4
    assert b'class="plain"' in open_storage(OUTPUT).read(f"runs/{open_storage(OUTPUT).names('runs')[0]}/report.html")
    assert run(job).images == 0
    assert finetune(finetuned(job, tmp_path)).record.trained_on
    found = places.output_rights(Subject(job=job))
    assert (found.verdict, "delete is refused" in found.text) == ("warning", True)
    assert places.input_rights(Subject(job=job)).verdict == "ok"
    assert places.commits(Subject(job=job)).verdict == "ok"
    with pytest.raises(Denied):
        open_storage(INPUT).write("planted.jpg", b"")

    become(READ)
    assert (verify(OUTPUT).images, verify(OUTPUT).problems) == (4, [])
    assert b"Nothing to do" in report(OUTPUT, to_output=False)[1]
    found = places.output_rights(Subject(job=job))
    assert (found.verdict, "put failed" in found.text) == ("problem", True)
    with pytest.raises(Denied):
        open_storage(INPUT).read("d.jpg")
    with pytest.raises(MaskfleetError):
        run(job)

    become(GC)
    open_storage(OUTPUT).write("runs/x/shards/s/a/masks.tar", b"left over")
    collect(OUTPUT, profile=None, grace=0, delete=True)
    assert not open_storage(OUTPUT).exists("runs/x/shards/s/a/masks.tar")
    assert verify(OUTPUT).problems == []
    assert places.output_rights(Subject(job=job)).verdict == "ok"
    with pytest.raises(Denied):
        open_storage(INPUT).read("d.jpg")
