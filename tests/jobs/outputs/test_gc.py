import os
import time

from conftest import draw_images, tree

from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.job.schema import Job
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
        indexes.add(url, "e", [])
    indexes.store(storage)
    storage.write("catalog/indexes/damaged.parquet", b"PAR1")
    assert len(collect(str(tmp_path / "out"), grace=-1, delete=True).paths) == 3
    assert Indexes(storage).get(f"{tmp_path}/a.tar", "e") == Indexes(storage).get(f"{bucket}/b.tar", "e") == []
    assert collect(str(tmp_path / "out"), grace=-1).paths == []
