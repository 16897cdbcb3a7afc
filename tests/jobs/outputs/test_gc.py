import os
import time

import pytest
from conftest import draw_images, tree

from maskfleet.jobs.errors import Locked, Skipped
from maskfleet.jobs.inputs.indexes import Index, Indexes
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.lock import Lock
from maskfleet.jobs.outputs.gc import collect
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage


def test_only_old_files_without_a_commit_are_garbage(tmp_path, weights_file):
    draw_images(tmp_path / "in", 4)
    out = tmp_path / "out"
    report = run(Job.of({"input": str(tmp_path / "in"), "output": str(out), "weights": weights_file}))
    shard = out / f"runs/{report.run_id}/shards/00000"
    for name, hours in (("lost", 25), ("running", 1)):
        (shard / name).mkdir()
        (shard / name / "masks.tar").write_bytes(b"12345")
        os.utime(shard / name / "masks.tar", (time.time() - hours * 3600,) * 2)
    for path in out.rglob("*"):  # referenced files may have any age
        if path.is_file() and "running" not in str(path):
            os.utime(path, (time.time() - 99 * 3600,) * 2)
    before = tree(out)
    found = collect(str(out))
    assert found.paths == [f"runs/{report.run_id}/shards/00000/lost/masks.tar"]
    assert (found.size, found.young, found.deleted) == (5, 1, False)
    assert tree(out) == before
    assert collect(str(out), delete=True).deleted
    assert {path for path in set(before) - set(tree(out)) if not path.startswith("lock/")} == set(found.paths)
    assert verify(str(out)).problems == []


def test_merged_catalog_files_are_garbage(tmp_path):
    import pyarrow as pa

    from maskfleet.jobs.ledger import catalog

    storage = LocalStorage(str(tmp_path))
    row = {"fingerprint": "f", "status": "ok", "run_id": "r", "input": "in"}
    for night in range(12):
        catalog.add(storage, f"{night:02}", [pa.Table.from_pylist([{**row, "key": f"k{night}"}], catalog.SCHEMA)])
    assert len(collect(str(tmp_path), grace=-1).paths) == 8
    collect(str(tmp_path), grace=-1, delete=True)
    assert sum(table.num_rows for table in catalog.rows(storage, catalog.current(storage))) == 12


def test_indexes_of_deleted_tars_are_garbage(tmp_path, bucket):
    storage, inputs = LocalStorage(str(tmp_path / "out")), open_storage(bucket)
    inputs.write("b.tar", b"")
    (tmp_path / "a.tar").touch()
    indexes = Indexes(storage)
    for url in (f"{tmp_path}/a.tar", f"{tmp_path}/gone.tar", f"{bucket}/b.tar", f"{bucket}/gone.tar"):
        indexes.add(url, "e", Index([]))
    indexes.store(storage)
    storage.write("catalog/indexes/damaged.parquet", b"PAR1")
    assert len(collect(str(tmp_path / "out"), grace=-1, delete=True).paths) == 3
    assert Indexes(storage).get(f"{tmp_path}/a.tar", "e") == Indexes(storage).get(f"{bucket}/b.tar", "e") == Index([])
    assert collect(str(tmp_path / "out"), grace=-1).paths == []


def aged(path, data=b"12345"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - 99 * 3600,) * 2)


def test_files_of_killed_writes_and_probes_are_garbage(tmp_path, weights_file):
    """Finding 19 of the attacks: gc never saw the temporary files of killed processes."""
    draw_images(tmp_path / "in", 4)
    out = tmp_path / "out"
    run(Job.of({"input": str(tmp_path / "in"), "output": str(out), "weights": weights_file}))
    left = {"masks/part-0/.maskfleet-tmp-1a", ".maskfleet-tmp-2b", "lock/.maskfleet-tmp-3c", ".maskfleet-probe/4d"}
    for path in left:
        aged(out / path)
    (out / "masks/.maskfleet-tmp-now").write_bytes(b"being written")
    found = collect(str(out), delete=True)
    assert (set(found.paths), found.young) == (left, 1)
    assert not any((out / path).exists() for path in left)
    assert verify(str(out)).problems == []


@pytest.mark.parametrize(("on_overlap", "error"), [("fail", Locked), ("skip", Skipped)])
def test_nothing_is_deleted_beside_a_run(tmp_path, weights_file, on_overlap, error):
    """Finding 5 of the attacks: an attempt lost its files before its commit, which then named nothing."""
    draw_images(tmp_path / "in", 4)
    out = tmp_path / "out"
    job = Job.of(
        {"input": str(tmp_path / "in"), "output": str(out), "weights": weights_file}, [f"run.on_overlap={on_overlap}"]
    )
    report = run(job)
    attempt = out / f"runs/{report.run_id}/shards/00000/being-written/masks.tar"
    aged(attempt)
    with Lock(LocalStorage(str(out))):
        assert len(collect(str(out)).paths) == 1
        with pytest.raises(error, match="is held by process"):
            collect(str(out), grace=0, delete=True)
    assert attempt.exists()
    assert collect(str(out), grace=0, delete=True).paths
    assert not attempt.exists()


def test_a_process_that_deletes_is_fenced(tmp_path, weights_file, monkeypatch):
    """It is stopped after listing, a run takes over and commits what it had listed, and it goes on."""
    from maskfleet.jobs.ledger import fence
    from maskfleet.jobs.outputs import gc

    monkeypatch.setattr(fence, "FRESH", 0)
    draw_images(tmp_path / "in", 4)
    out = tmp_path / "out"
    report = run(Job.of({"input": str(tmp_path / "in"), "output": str(out), "weights": weights_file}))
    attempt = out / f"runs/{report.run_id}/shards/00000/being-written/masks.tar"
    aged(attempt)
    attempts = gc._attempts

    def stopped(*arguments):
        yield from attempts(*arguments)
        (out / "lock/000099.json").write_text("{}")

    monkeypatch.setattr(gc, "_attempts", lambda *arguments: list(stopped(*arguments)))
    with pytest.raises(Locked):
        collect(str(out), delete=True)
    assert attempt.exists()


def test_the_attempts_of_a_run_with_a_damaged_commit_are_kept(tmp_path, weights_file):
    draw_images(tmp_path / "in", 4)
    out = tmp_path / "out"
    run(Job.of({"input": str(tmp_path / "in"), "output": str(out), "weights": weights_file}))
    (commit,) = out.glob("runs/*/commits/00000.json")
    commit.write_bytes(b"{")
    for path in out.rglob("*.tar"):
        os.utime(path, (time.time() - 99 * 3600,) * 2)
    found = collect(str(out), delete=True)
    assert found.paths == []
    assert "is left alone" in found.damaged[0]
    assert list(out.rglob("masks.tar"))
