import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger.commit import Commit, Commits, put
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.ledger.shard_files import STATISTICS
from maskfleet.jobs.ledger.statistics import table_of, table_parquet
from maskfleet.jobs.outputs.lookup import committed_row, newest_row
from maskfleet.jobs.storage.local import LocalStorage

ROW = dict.fromkeys(("url", "run_id", "fingerprint", "attempt", "worker", "status"), "x")


def commit(storage, commits, shard, *keys):
    data = table_parquet(table_of([ROW | {"key": key} for key in keys]))
    item = put(storage, f"{shard}/{STATISTICS}", data)
    return commits.commit(Commit(shard, shard, {STATISTICS: item}, len(keys), 0))


def test_the_row_of_an_image_is_found_in_the_halves_of_a_split_shard(tmp_path):
    storage = LocalStorage(str(tmp_path))
    commits = Commits(storage, "run", "worker")
    commits.split(Shard("00000", 0, 4))
    assert committed_row(storage, commits, "00000", "a") is None
    commits.split(Shard("00000.1", 2, 4))
    commit(storage, commits, "00000.0", "a", "b")
    last = commit(storage, commits, "00000.1.1", "d")
    found = committed_row(storage, commits, "00000", "d")
    assert found is not None
    assert found[0] == last
    assert found[1]["key"] == "d"
    assert committed_row(storage, commits, "00000", "a")[1]["key"] == "a"
    assert committed_row(storage, commits, "00000", "c") is None


def test_an_empty_output_has_no_row(tmp_path):
    with pytest.raises(JobError, match="no image key ends with 'a'"):
        newest_row(LocalStorage(str(tmp_path)), "a")
