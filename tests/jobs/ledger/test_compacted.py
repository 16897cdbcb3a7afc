"""Compacted statistics open in every library, and those of the old layout are moved without a loss."""

import shutil

import pytest
from conftest import draw_images, statistics, tree

from maskfleet.jobs.errors import Locked, StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog, compacted
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.statistics import table_of, table_parquet
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage

ROW = dict.fromkeys(("url", "run_id", "fingerprint", "attempt", "worker", "status"), "x")


@pytest.fixture(scope="module")
def output(tmp_path_factory, weights_file):
    """An output of two runs: 8 images, then 1 changed and 1 new."""
    folder = tmp_path_factory.mktemp("output")
    images = draw_images(folder / "in", 8)
    job = Job.of({"input": str(images), "output": str(folder / "out"), "weights": weights_file}, ["cluster.threads=1"])
    run(job)
    first, second = sorted(images.rglob("*.jpg"))[:2]
    first.write_bytes(second.read_bytes())
    shutil.copy(second, images / "new.jpg")
    run(job)
    return folder / "out"


def rows_by_pandas(folder):
    import pandas as pd

    return pd.read_parquet(folder)["run_id"].tolist()


def rows_by_pyarrow(folder):
    import pyarrow.parquet as pq

    return pq.read_table(folder)["run_id"].to_pylist()


def rows_by_pyarrow_dataset(folder):
    import pyarrow.dataset

    return pyarrow.dataset.dataset(folder).to_table()["run_id"].to_pylist()


def rows_by_polars(folder):
    import polars as pl

    return pl.read_parquet(folder)["run_id"].to_list()


def rows_by_polars_lazily(folder):
    import polars as pl

    return pl.scan_parquet(f"{folder}/**/*.parquet").select("run_id").collect()["run_id"].to_list()


def rows_by_duckdb(folder):
    import duckdb

    return [run_id for (run_id,) in duckdb.sql(f"SELECT run_id FROM '{folder}/**/*.parquet'").fetchall()]


def rows_by_datasets(folder):
    datasets = pytest.importorskip("datasets")
    return list(datasets.load_dataset(folder, split="train")["run_id"])


READERS = [
    rows_by_pandas,
    rows_by_pyarrow,
    rows_by_pyarrow_dataset,
    rows_by_polars,
    rows_by_polars_lazily,
    rows_by_duckdb,
    rows_by_datasets,
]


@pytest.mark.parametrize("rows", READERS)
def test_the_folder_opens_in_every_library(output, rows, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    first, second = sorted(path.name for path in (output / "runs").iterdir())
    assert sorted(rows(str(output / "stats"))) == [first] * 8 + [second] * 2


# The old layout ----------------------------------------------------------------------------------


def to_old_layout(output):
    for folder in (output / "stats").iterdir():
        folder.rename(folder.with_name(f"run_id={folder.name}"))


@pytest.fixture
def old(output, tmp_path):
    """A copy of the output in the old layout."""
    copied = shutil.copytree(output, tmp_path / "old")
    to_old_layout(copied)
    return copied


def test_an_output_of_the_old_layout_verifies(old):
    audit = verify(str(old))
    assert (audit.problems, audit.images) == ([], 10)


def test_the_next_run_brings_an_old_output_into_the_new_layout(output, old, weights_file):
    before = statistics(output)
    report = run(Job.of({"input": str(output.parent / "in"), "output": str(old), "weights": weights_file}))
    assert report.images == 0
    assert [path.name for path in (old / "stats").iterdir()] == [path.name for path in (output / "stats").iterdir()]
    assert tree(old / "stats") == tree(output / "stats")
    assert statistics(old) == before
    assert verify(str(old)).problems == []


def test_the_catalog_is_made_again_from_the_old_layout(output, old, weights_file):
    shutil.rmtree(old / "catalog")
    report = run(Job.of({"input": str(output.parent / "in"), "output": str(old), "weights": weights_file}))
    assert report.images == 0
    storage = LocalStorage(str(old))
    assert sum(table.num_rows for table in catalog.rows(storage, catalog.current(storage))) == 9
    assert verify(str(old)).problems == []


# Crashes -----------------------------------------------------------------------------------------


class Crash(StorageError):
    """Storage goes away."""


class Crashing:
    """A storage failing at one of its changes, either before the change or after it."""

    def __init__(self, storage, changes, *, after):
        self._storage, self._left, self._after = storage, changes, after

    def __getattr__(self, name):
        call = getattr(self._storage, name)
        return self._change(call) if name in ("create", "write", "delete", "discard", "remove_folder") else call

    def _change(self, call):
        def changed(*arguments):
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Crash("gone")
            result = call(*arguments)
            if self._left < 0:
                raise Crash("gone")
            return result

        return changed


def parquet(rows):
    return table_parquet(table_of(rows))


def drawn(storage, *runs):
    """Statistics of the old layout: three parts per run, two rows each."""
    for run_id in runs:
        for part in range(3):
            rows = [ROW | {"run_id": run_id, "key": f"{part}-{row}"} for row in range(2)]
            storage.write(f"stats/run_id={run_id}/part-{part:05}.parquet", parquet(rows))


def keys(storage, run_id):
    return [key for table in compacted.tables(storage, run_id) for key in table["key"].to_pylist()]


KEYS = [f"{part}-{row}" for part in range(3) for row in range(2)]
PARTS = [f"part-{part:05}.parquet" for part in range(3)]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request, tmp_path):
    return LocalStorage(str(tmp_path)) if request.param == "local" else open_storage(request.getfixturevalue("bucket"))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("changes", range(7))
def test_an_interrupted_move_loses_nothing_and_the_next_one_finishes_it(storage, changes, after):
    drawn(storage, "one")
    with pytest.raises(Crash):
        compacted.migrate(Crashing(storage, changes, after=after), Fence(storage, 1))
    assert keys(storage, "one") == KEYS
    assert [table.num_rows for table in compacted.row_groups(storage, "one")] == [2, 2, 2]
    compacted.migrate(storage, Fence(storage, 1))
    assert keys(storage, "one") == KEYS
    assert storage.names("stats") == ["one"]
    assert storage.names("stats/one") == PARTS


def test_the_last_crash_point_is_tried_above(storage):
    drawn(storage, "one")
    compacted.migrate(Crashing(storage, 7, after=False), Fence(storage, 1))
    assert storage.names("stats") == ["one"]


def test_a_reader_sees_each_row_once_while_files_are_moved(storage):
    drawn(storage, "one")

    class Moving:
        """A storage whose files are moved after each of its listings and reads."""

        def __init__(self, moves):
            self._moves = moves

        def __getattr__(self, name):
            def called(*arguments):
                try:
                    return getattr(storage, name)(*arguments)
                finally:
                    next(self._moves, None)

            return called

    def moves():
        for part in PARTS:
            storage.create(f"stats/one/{part}", storage.read(f"stats/run_id=one/{part}"))
            yield
            storage.delete(f"stats/run_id=one/{part}")
            yield

    assert keys(Moving(moves()), "one") == KEYS


def test_many_runs_are_moved(storage):
    drawn(storage, *"abcdefgh")
    compacted.migrate(storage, Fence(storage, 1))
    assert storage.names("stats") == list("abcdefgh")
    assert all(keys(storage, run_id) == KEYS for run_id in "abcdefgh")


def test_newer_statistics_of_a_run_are_kept(storage):
    drawn(storage, "one")
    newer = parquet([ROW | {"key": "newer"}])
    compacted.write_part(storage, "one", 0, newer)
    compacted.migrate(storage, Fence(storage, 1))
    assert storage.read("stats/one/part-00000.parquet") == newer


def test_a_superseded_driver_moves_nothing(storage):
    drawn(storage, "one")
    storage.create("lock/000002.json", b"{}")
    with pytest.raises(Locked):
        compacted.migrate(storage, Fence(storage, 1))
    assert storage.names("stats") == ["run_id=one"]
