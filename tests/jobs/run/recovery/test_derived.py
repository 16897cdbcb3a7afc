"""Compaction alone; `test_execute.py` tests it in whole runs."""

from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskfleet.jobs.ledger.commit import Commit
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.ledger.statistics import SCHEMA
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.run.recovery import derived
from maskfleet.jobs.run.recovery.derived import compact
from maskfleet.jobs.run.recovery.unexported import export_rest, forget_unsettled
from maskfleet.jobs.storage.local import LocalStorage


def test_compaction_holds_a_few_thousand_rows_at_a_time(tmp_path, monkeypatch):
    shards = [Shard(f"{number:05}", 0, 512) for number in range(100)]
    base = dict.fromkeys(("url", "run_id", "fingerprint", "attempt", "worker", "status"), "x")

    def rows_of(_, shard):
        rows = [{**base, "key": f"{shard.id}-{row:03}", "error_class": "corrupt"} for row in range(512)]
        wide = pa.repeat("m" * 2048, 512)
        table = pa.Table.from_pylist(rows, SCHEMA)
        return table.set_column(SCHEMA.get_field_index("error_message"), SCHEMA.field("error_message"), wide)

    monkeypatch.setattr(derived, "rows_of", rows_of)
    manifest = SimpleNamespace(masks=lambda shard: pa.chunked_array([[f"{shard.id}.png"] * 512]))
    output = RunOutput(
        storage=LocalStorage(str(tmp_path)), run_id="night", fingerprint="f", manifest=manifest, commits=None,
        format=mask_format("none"),
    )  # fmt: skip
    errors, held, keys = Counter(), [], []
    before = pa.total_allocated_bytes()
    for outcomes in compact(output, ((shard, shard) for shard in shards), "in", errors):
        held.append(pa.total_allocated_bytes() - before)
        keys += outcomes["key"].to_pylist()
        assert outcomes["shard"][0].as_py() == keys[-outcomes.num_rows][:5]
        assert outcomes["mask"][0].as_py() == keys[-outcomes.num_rows][:5] + ".png"
    assert len(keys) == errors["corrupt"] == 51_200
    assert max(held) < 2048 * 35_000  # 51,200 rows in all
    files = [pq.ParquetFile(path) for path in sorted(tmp_path.glob("stats/night/*.parquet"))]
    assert [key for file in files for key in file.read(["key"])["key"].to_pylist()] == keys
    groups = [file.metadata.row_group(group).num_rows for file in files for group in range(file.num_row_groups)]
    assert groups == [*[8192] * 6, 51_200 - 6 * 8192]


class Noting(LocalStorage):
    """A storage noting what it is asked to do with masks and their markers."""

    def __init__(self, root):
        super().__init__(root)
        self.noted = []

    def export(self, path, data):
        self.noted.append(f"export {path}")
        super().export(path, data)

    def settle(self, path):
        self.noted.append(f"settle {path}")
        super().settle(path)

    def write(self, path, data):
        self.noted.append(f"write {path}")
        super().write(path, data)


def test_an_export_is_made_again_after_a_power_cut(tmp_path, monkeypatch):
    """Finding 20 of the attacks: the mark was fsynced and the masks were not."""
    storage = Noting(str(tmp_path))
    output = RunOutput(
        storage=storage, run_id="night", fingerprint="f", manifest=None, commits=None, format=mask_format("png")
    )
    commit = Commit("00003", "a", {}, 2, 0)
    output.export(commit, [("a.png", b"1"), ("b/c.png", b"2")])
    assert storage.noted == ["export masks/a.png", "export masks/b/c.png", "write runs/night/exports/00003"]
    forget_unsettled(output)
    assert export_rest(output, [(Shard("00003", 0, 2), commit)]) == []  # believed: nothing is read or written
    monkeypatch.setattr(Noting, "lifetime", lambda storage: "after the power cut")
    monkeypatch.setattr("maskfleet.jobs.ledger.run_output.masks_of", lambda *_: [("a.png", b"1"), ("b/c.png", b"2")])
    storage.write("masks/a.png", b"")
    forget_unsettled(output)
    assert export_rest(output, [(Shard("00003", 0, 2), commit)]) == []
    assert storage.read("masks/a.png") == b"1"
    assert storage.read("runs/night/exports/00003") == b"after the power cut"


@pytest.mark.parametrize("missing", [False, True])
def test_settling_works_with_and_without_a_call_for_one_file_system(tmp_path, monkeypatch, missing):
    if missing:
        monkeypatch.setattr("maskfleet.jobs.storage.local._SYNCFS", None)
    storage = LocalStorage(str(tmp_path))
    storage.settle("masks")  # no mask was ever written
    storage.export("masks/a.png", b"1")
    storage.settle("masks")
