"""Each kind of damage is found."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.errors import JobError
from jobs.job import Job
from jobs.run import run
from jobs.verify import verify


@pytest.fixture
def output(images, tmp_path, weights_file):
    run(Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file}, ["run.shard_size=6"]))
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_tar, "not what its commit describes"),
        (drop_row, "has 23 rows and is not what the commits hold .24"),
        (uncommit, "1 shards have no commit, the first is 00002"),
        (repaint, "is not the committed mask"),
        (lambda output: one(output, "masks/part-1/*.png").unlink(), "is missing"),
        (lose_object, "there is no file"),
        (count_wrong, "counts other rows"),
    ],
)
def test_damage_is_found(output, damage, message):
    assert verify(str(output)).problems == []
    damage(output)
    problems = verify(str(output)).problems
    assert any(__import__("re").search(message, problem) for problem in problems), problems


def test_an_output_without_runs_is_no_output(tmp_path):
    with pytest.raises(JobError, match="there is no run"):
        verify(str(tmp_path))


def test_a_mask_that_its_row_does_not_describe_is_found():
    from jobs.verify import _of_mask

    sink = io.BytesIO()
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(sink, "PNG")
    assert list(_of_mask({"height": 4, "width": 5, "class_pixels": [20, 0]}, sink.getvalue())) == []
    assert len(list(_of_mask({"height": 5, "width": 4, "class_pixels": [19, 1]}, sink.getvalue()))) == 2
