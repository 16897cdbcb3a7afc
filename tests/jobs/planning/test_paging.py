"""Pages in a plan: in key order, with bounded memory, and counted once."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.inputs.record import LISTED, Record, records, table_of
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.planning.paging import Paging


def listing(keys, *, rows=3):
    found = [Record(key, f"/in/{key}", 120, f"etag of {key}", None) for key in sorted(keys)]
    return iter([table_of(found[start : start + rows]) for start in range(0, len(found), rows)])


def keys_of(tables):
    return [record.key for table in tables for record in records(table)]


def known(*rows):
    table = [
        {"status": "ok", "run_id": "r", "input": "/in", "etag": f"etag of {key.partition('/page')[0]}"}
        | row
        | {"key": key}
        for key, row in sorted(rows)
    ]
    return [pa.Table.from_pylist(table, catalog.SCHEMA)]


NAMES = st.sampled_from(
    ["a", "a.tif", "a.tif-2.tif", "a.tif.tif", "a.tif0.jpg", "b.GIF", "b.GIF!.gif", "c.jpg", "d/e.tiff"]
)


@settings(deadline=None, max_examples=40)
@given(st.sets(NAMES), st.integers(1, 4), st.data())
def test_pages_come_in_key_order(names, rows, data):
    counts = {name: data.draw(st.integers(1, 12_000 if name == "a.tif" else 3)) for name in names}
    paging = Paging("each", (), lambda files: [counts[file.key] for file in files])
    tables = list(paging.of(listing(names, rows=rows)))
    keys = keys_of(tables)
    assert keys == sorted(set(keys))
    assert all(table.schema.equals(LISTED) for table in tables)
    stacks = [name for name in names if counts[name] > 1 and name.lower().endswith((".tif", ".tiff", ".gif"))]
    assert len(keys) == len(names) - len(stacks) + sum(counts[name] for name in stacks)


def test_what_the_catalog_knows_is_not_counted():
    asked, uncounted = [], []

    def count(files):
        asked.extend(file.key for file in files)
        return [None if file.key == "h.tif" else 2 for file in files]

    rows = known(
        ("a.tif", {}),
        ("b.tif", {"status": "failed"}),
        ("c.tif", {"etag": "older"}),
        ("d.tif", {"pages": 0}),
        ("e.tif/page=0001", {"pages": 2, "status": "failed"}),
        ("f.tif/page=0001", {"pages": 2, "status": "gone"}),
        ("g.tif/page=0001", {"pages": 2, "etag": "older"}),
        ("i.tif", {"status": "redo"}),
    )
    names = [f"{name}.tif" for name in "abcdefghi"]
    keys = keys_of(Paging("each", rows, count, uncounted.append).of(listing(names)))
    assert asked == ["b.tif", "c.tif", "d.tif", "f.tif", "g.tif", "h.tif", "i.tif"]
    assert uncounted == ["h.tif"]
    assert [key for key in keys if "page" not in key] == ["a.tif", "h.tif"]


def test_other_modes_read_nothing():
    def count(files):
        raise AssertionError(files)

    names = ["a.tif", "b.jpg", "c.gif"]
    for mode in ("refuse", "first"):
        assert keys_of(Paging(mode, (), count).of(listing(names))) == names
    (first,) = Paging("first").of(listing(names))
    assert first["url"].to_pylist() == ["/in/a.tif#page=1", "/in/b.jpg", "/in/c.gif#page=1"]
