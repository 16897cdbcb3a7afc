import pyarrow as pa
import pytest
from conftest import tree
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.errors import JobError, Locked
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.sorted_tables import merged
from maskfleet.jobs.storage.local import LocalStorage


def table(**rows):
    base = {"fingerprint": "f", "status": "ok", "run_id": "r", "input": "in"}
    return pa.Table.from_pylist(
        [{**base, "key": key, "etag": etag} for key, etag in sorted(rows.items())], catalog.SCHEMA
    )


def etags(storage):
    found = {}
    for part in catalog.rows(storage, catalog.current(storage)):
        found |= dict(zip(part["key"].to_pylist(), part["etag"].to_pylist(), strict=True))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("xyz", max_size=2), max_size=9), max_size=24
    )
)
def test_the_newest_outcome_of_every_key_counts(tmp_path_factory, nights):
    storage = LocalStorage(str(tmp_path_factory.mktemp("catalog")))
    expected = {}
    for number, night in enumerate(nights):
        catalog.add(storage, f"{number:03}", [table(**night)])
        expected |= night
    assert etags(storage) == expected
    version = catalog.current(storage)
    assert len(version.deltas) < 16
    for key, etag in expected.items():
        assert catalog.find(storage, version, key)["etag"] == etag
    assert catalog.find(storage, version, "d") is None


def test_a_run_writes_in_proportion_to_its_own_size(tmp_path, monkeypatch):
    storage = LocalStorage(str(tmp_path))
    catalog.add(storage, "000", [table(**{f"k{number:06}": "e" for number in range(50_000)})])
    written = []
    monkeypatch.setattr(
        LocalStorage,
        "write",
        lambda self, path, data, write=LocalStorage.write: (written.append(len(data)), write(self, path, data)),
    )
    for night in range(1, 30):
        catalog.add(storage, f"{night:03}", [table(**{f"k{night:06}": "new", f"n{night:06}": "new"})])
    assert len(written) == 29 + 3  # one delta per run, and three merges of eight deltas
    assert sum(written) < 32 * 4000
    assert len(catalog.current(storage).deltas) < 16
    assert etags(storage)["k000007"] == "new"


def test_adding_a_run_twice_has_no_effect(tmp_path):
    storage = LocalStorage(str(tmp_path))
    first = catalog.add(storage, "001", [table(a="1")])
    assert catalog.add(storage, "001", [table(a="2")]) == first
    assert etags(storage) == {"a": "1"}


def test_a_superseded_driver_cannot_add(tmp_path):
    storage = LocalStorage(str(tmp_path))
    storage.write("lock/000002.json", b"{}")
    with pytest.raises(Locked):
        catalog.add(storage, "001", [table(a="1")], fence=Fence(storage, 1))
    assert catalog.current(storage).number == 0


def test_any_unique_ending_of_a_key_names_it(tmp_path):
    storage = LocalStorage(str(tmp_path))
    catalog.add(storage, "001", [table(**{"p/a.png": "1", "p/ba.png": "2", "a.jpg": "3", "q/a.jpg": "4"})])
    version = catalog.current(storage)
    assert catalog.ending(storage, version, "a.png") == "p/a.png"  # whole path segments take precedence
    assert catalog.ending(storage, version, "ba.png") == "p/ba.png"
    assert catalog.ending(storage, version, "a.jpg") == "a.jpg"  # a complete key takes precedence
    with pytest.raises(JobError, match="matches p/a.png, p/ba.png"):
        catalog.ending(storage, version, ".png")


def test_a_merge_keeps_every_row_without_newest():
    one, two = table(a="1", c="3"), table(b="2", c="4")
    assert [row["etag"] for part in merged([iter([one]), iter([two])]) for row in part.to_pylist()] == [
        "1",
        "2",
        "4",
        "3",
    ]


def test_a_catalog_without_names_of_masks_is_read_and_merged_with_newer_rows(tmp_path, monkeypatch):
    """Earlier versions wrote no column `mask`."""
    storage = LocalStorage(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "SCHEMA", catalog.SCHEMA.remove(catalog.SCHEMA.get_field_index("mask")))
        catalog.add(storage, "001", [table(a="1", b="1")])
    catalog.add(storage, "002", [table(b="2", c="2").set_column(9, "mask", pa.array(["b.png", "c.png"]))])
    rows = pa.concat_tables(catalog.rows(storage, catalog.current(storage))).to_pylist()
    assert [(row["key"], row["mask"]) for row in rows] == [("a", None), ("b", "b.png"), ("c", "c.png")]
    assert catalog.find(storage, catalog.current(storage), "a")["etag"] == "1"
    old = tmp_path / next(name for name in tree(tmp_path) if b"b.png" not in tree(tmp_path)[name] and "rows" in name)
    assert "mask" in catalog.table_of(old.read_bytes()).schema.names
