"""A catalog that cannot be read: it is derived, so it costs a sentence and no night."""

import json

import pytest
from conftest import draw_images, tree

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.outputs.status import status
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.planning.plan import Planning
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.schemes import open_storage


def garbage(path):
    path.write_bytes(b"\xff" * 300)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def in_the_middle(path):
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)


def another_form(path):
    path.write_text(json.dumps({"runs": 3}))


DAMAGE = {
    "a record of garbage": ("*.json", garbage),
    "a record of another form": ("*.json", another_form),
    "half a record": ("*.json", half),
    "rows of garbage": ("rows/*", garbage),
    "half the rows": ("rows/*", half),
    "rows with zeros": ("rows/*", in_the_middle),
    "no rows": ("rows/*", lambda path: path.unlink()),
}


@pytest.fixture
def job(tmp_path, weights_file):
    draw_images(tmp_path / "in", 4)
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
    return Job.of(table, ["run.shard_size=2", "cluster.threads=1"])


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_night_goes_on_without_a_catalog_that_cannot_be_read(tmp_path, job, kind):
    pattern, damage = DAMAGE[kind]
    run(job)
    before = tree(tmp_path / "out/masks")
    (newest,) = sorted((tmp_path / "out/catalog").glob(pattern))[-1:]
    damage(newest)
    draw_images(tmp_path / "in/more", 1, seed=1)
    notices = []
    summary = run(job, on_progress=lambda run, progress: notices.extend(progress.notices))
    assert (summary.images, summary.planned, summary.exit_code) == (1, {"new": 1}, 0)
    assert "is unreadable, so the catalog is made again from the statistics" in notices[0]
    assert before.items() <= tree(tmp_path / "out/masks").items()
    assert verify(str(tmp_path / "out")).problems == []
    assert run(job).images == 0


def test_a_catalog_found_damaged_while_shards_are_processed(tmp_path, job, monkeypatch):
    for module in ("planning.plan", "ledger.manifest"):
        monkeypatch.setattr(f"maskfleet.jobs.{module}.PART_SHARDS", 1)
    run(job)
    planned, failed = Planning.__iter__, []

    def parts(self):
        found = planned(self)
        yield next(found)
        if not failed:  # by now the first shards are handed out
            failed.append(True)
            raise catalog.Unreadable("catalog/rows/x.parquet is unreadable")
        yield from found

    monkeypatch.setattr(Planning, "__iter__", parts)
    draw_images(tmp_path / "in/more", 3, seed=1)
    assert run(job).exit_code == 0
    assert failed
    assert verify(str(tmp_path / "out")).problems == []
    monkeypatch.undo()
    rows = list(catalog.rows(open_storage(job.output), catalog.current(open_storage(job.output))))
    assert sum(table.num_rows for table in rows) == 7


def test_those_who_only_read_say_what_to_do(tmp_path, job):
    run(job)
    for path in (tmp_path / "out/catalog").glob("*.json"):
        garbage(path)
    with pytest.raises(
        StorageError, match=r"catalog/00000001.json is unreadable; run the job: it makes the catalog again"
    ):
        catalog.current(open_storage(job.output))
    assert verify(str(tmp_path / "out")).problems == ["the catalog cannot be read; the next run makes it again"]
    assert status(str(tmp_path / "out")).state == "complete"
