"""Each kind of damage is found."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.outputs.checks.run_check import LooseMask
from maskfleet.jobs.outputs.verify import Audit, _check_loose, verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage


@pytest.fixture
def output(images, tmp_path, weights_file):
    run(
        Job.of(
            {"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file},
            ["run.shard_size=6", "cluster.threads=1"],
        )
    )
    return tmp_path / "out"


def one(output, pattern):
    return sorted(output.glob(pattern))[0]


def change_tar(output):
    path = one(output, "runs/*/shards/00001/*/masks.tar")
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def drop_row(output):
    path = one(output, "stats/*/*.parquet")
    pq.write_table(pq.read_table(path, partitioning=None).slice(1), path)


def uncommit(output):
    one(output, "runs/*/commits/00002.json").unlink()


def repaint(output):
    path = one(output, "masks/part-0/*.png")
    Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)


def lose_object(output):
    one(output, "runs/*/shards/00000/*/stats.parquet").unlink()


def count_wrong(output):
    path = one(output, "runs/*/commits/00000.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"failed": 3}))


def change_catalog(output):
    path = one(output, "catalog/rows/*.parquet")
    rows = pq.read_table(path).to_pylist()
    rows[3]["etag"] = "another"
    del rows[5]
    pq.write_table(pa.Table.from_pylist(rows, catalog.SCHEMA), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_tar, "does not match its commit"),
        (drop_row, "has 23 rows and differs from the 24 committed rows"),
        (uncommit, "1 shard has no commit, the first is 00002"),
        (repaint, "differs from the committed mask"),
        (lambda output: one(output, "masks/part-1/*.png").unlink(), "is missing"),
        (lose_object, "stats.parquet is missing"),
        (count_wrong, "the counts of its commit differ from its rows"),
        (change_catalog, "the catalog differs from the finished runs in 2 images, such as part-0/image-006"),
    ],
)
def test_damage_is_found(output, damage, message):
    assert verify(str(output)).problems == []
    damage(output)
    problems = verify(str(output)).problems
    assert any(__import__("re").search(message, problem) for problem in problems), problems


def test_the_catalog_of_several_runs_is_checked(images, tmp_path, weights_file):
    job = Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file})
    run(job)
    first, second, third, *_ = sorted(path for path in images.rglob("*") if path.is_file())
    first.unlink()
    second.write_bytes(third.read_bytes())
    run(job)
    second.unlink()
    run(job)
    assert verify(str(tmp_path / "out")).problems == []
    path = one(tmp_path / "out", "runs/*/manifest/gone-*.parquet")
    path.unlink()
    assert "the catalog differs from the finished runs in 1 image" in verify(str(tmp_path / "out")).problems[0]


def test_an_output_without_runs_is_refused(tmp_path):
    with pytest.raises(JobError, match="there is no run"):
        verify(str(tmp_path))


def test_rows_stored_with_masks_are_compared_with_the_statistics(images, tmp_path, weights_file):
    job = {"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file}
    run(Job.of(job, ["masks.format=parquet", "run.shard_size=12"]))
    assert verify(str(tmp_path / "out")).problems == []
    path = one(tmp_path / "out", "runs/*/shards/00000/*/masks.parquet")
    table = pq.read_table(path)
    changed = table.set_column(0, table.schema.field("key"), table["key"].take(list(range(11, -1, -1))))
    pq.write_table(changed, path)
    commit = one(tmp_path / "out", "runs/*/commits/00000.json")
    record = json.loads(commit.read_text())
    sums = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    record["objects"]["masks.parquet"] |= sums
    commit.write_text(json.dumps(record))
    problems = verify(str(tmp_path / "out")).problems
    assert problems == [
        "run " + problems[0].split()[1] + " shard 00000: the rows stored with its masks differ from its statistics"
    ]


def test_masks_of_more_pixels_than_pillow_opens_are_checked(images, tmp_path, weights_file, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    table = {"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file}
    run(Job.of(table, ["cluster.threads=1", "masks.values=[[0, 0, 0], [1, 2, 3]]"]))
    assert verify(str(tmp_path / "out")).problems == []


def test_two_images_with_one_loose_mask_are_named(tmp_path):
    """Finding 10 of the attacks: the second image took the first one's name, and verify was clean."""
    storage = LocalStorage(str(tmp_path))
    storage.write("masks/scan.png", b"2")
    known = {"scan.png": LooseMask(hashlib.sha256(b"2").hexdigest(), "scan 2.jpg", "night/00000", "scan.png")}
    row = {"fingerprint": "f", "run_id": "night", "input": "in"}
    for status, found in (("ok", 1), ("gone", 0), ("redo", 0)):
        catalog.add(
            storage,
            f"{status} later",
            [pa.Table.from_pylist([{**row, "key": "scan.png", "status": status}], catalog.SCHEMA)],
            complete=False,
        )
        audit = Audit()
        _check_loose(audit, storage, known, "maskfleet redo out")
        assert len(audit.problems) == len(audit.remedies) == found
        if found:
            assert audit.problems == [
                "masks/scan.png is shared by scan.png and scan 2.jpg, and holds the mask of the latter"
            ]
            assert audit.remedies == ["maskfleet redo out scan.png 'scan 2.jpg'"]


def test_a_run_that_cannot_be_resumed_is_a_problem(output):
    """Finding 1 of the attacks: verify said "no problems" of an output whose every night failed."""
    one(output, "runs/*/run.json").unlink()
    one(output, "runs/*/manifest/part-00000.parquet").unlink()
    audit = verify(str(output))
    assert list(audit.runs.values()) == ["unfinished"]
    assert any("part-00000.parquet is missing" in problem for problem in audit.problems)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}"])
def test_an_unreadable_description_of_a_run_is_a_problem(output, damage):
    one(output, "runs/*/job.json").write_bytes(damage)
    audit = verify(str(output))
    assert list(audit.runs.values()) == ["damaged"]
    assert any("job.json is damaged" in problem for problem in audit.problems)


def test_an_unreadable_catalog_is_a_problem_with_a_remedy(output):
    one(output, "catalog/rows/*.parquet").write_bytes(b"PAR1")
    assert verify(str(output)).problems == ["the catalog cannot be read; the next run makes it again"]
