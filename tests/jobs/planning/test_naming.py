"""Names of masks over many nights: no two images of an output ever share one."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.inputs.record import Record, table_of
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.masks.names import mask_names
from maskfleet.jobs.planning import naming
from maskfleet.jobs.planning.plan import Planning

KEYS = st.text("ab.-/", min_size=1, max_size=4).flatmap(
    lambda stem: st.sampled_from([stem, f"{stem}.jpg", f"{stem}.png", f"{stem}.jpg.png", f"{stem}.png/x.jpg"])
)
NIGHT = st.tuples(st.sets(KEYS, max_size=8), st.sampled_from(["one", "two"]), st.integers(0, 2), st.booleans())


def column(keys):
    return pa.chunked_array([pa.array(keys, pa.string())])


def row(key, **more):
    base = {"etag": "", "fingerprint": "f", "status": "ok", "run_id": "r", "input": "one"}
    return {**base, "key": key, **more}


def in_pieces(rows, rows_each, schema):
    found = sorted(rows, key=lambda each: each["key"])
    for start in range(0, len(found), rows_each):
        yield pa.Table.from_pylist(found[start : start + rows_each], schema)


def night(known, keys, source, etag, *, rows_each):
    """Plan a night as a run does. Return the names of the planned masks and the keys that are gone."""
    listed = sorted(keys)
    planning = Planning(
        (table_of([Record(key, key, 1, str(etag)) for key in listed[start : start + rows_each]])
         for start in range(0, len(listed), rows_each)),
        in_order=True, shard_size=3, fingerprint="f", source=source,
        known=in_pieces(known.values(), rows_each, catalog.SCHEMA),
    )  # fmt: skip
    rows = [row for part in planning for row in part.table.to_pylist()]
    gone = planning.take_gone()
    return {row["key"]: row["mask"] for row in rows}, [] if gone is None else gone["key"].to_pylist()


@settings(max_examples=100, deadline=None)
@given(old=st.sets(KEYS, max_size=6), nights=st.lists(NIGHT, min_size=1, max_size=6), rows_each=st.integers(1, 4))
def test_no_two_images_ever_share_a_mask_whatever_comes_goes_and_returns(old, nights, rows_each):
    """`old` are the images of a catalog without names, made by an earlier version."""
    before, naming.CHUNK = naming.CHUNK, rows_each
    try:
        _check_nights(sorted(old), nights, rows_each)
    finally:
        naming.CHUNK = before


def _check_nights(old, nights, rows_each):
    known = {key: row(key, mask=None) for key in old}
    names = dict(zip(old, mask_names(column(old)).to_pylist(), strict=True))  # as that version gave them
    for keys, source, etag, fails in nights:
        planned, gone = night(known, keys, source, etag, rows_each=rows_each)
        for key, mask in planned.items():
            if known.get(key, {}).get("mask"):
                assert mask == known[key]["mask"], "a recorded name stays"
            status = {"status": "failed"} if fails else {}
            known[key] = row(key, etag=str(etag), input=source, mask=mask, **status)
        names |= planned
        for key in gone:
            known[key] = {**known[key], "status": "gone"}
        assert len(set(names.values())) == len(names)
        assert "" not in names.values()
        folders = {name[:end] for name in names.values() for end, character in enumerate(name) if character == "/"}
        new = {name for key, name in names.items() if known[key]["mask"]}
        assert folders.isdisjoint(new), "a mask is never in the place of a folder"


def test_names_in_pieces_are_the_names_of_the_whole(monkeypatch):
    keys = [f"{number // 3:03}{ending}" for number, ending in enumerate([".jpg", ".png", ".tif"] * 40)]
    rows = {key: row(key, mask=None if number % 2 else f"{key}.png") for number, key in enumerate(keys[:60])}
    whole = night(rows, keys, "one", 1, rows_each=1000)
    monkeypatch.setattr(naming, "CHUNK", 4)
    assert night(rows, keys, "one", 1, rows_each=3) == whole


def test_the_stream_holds_little_beside_a_large_catalog(monkeypatch):
    """Listed images are few; those of other inputs lie before, between and behind them."""
    monkeypatch.setattr(naming, "CHUNK", 100)
    rows = [row(f"{number:06}.png", mask=f"{number:06}.png", input="two") for number in range(20_000)]
    listing = [table_of([Record(f"{number}.png", "", 1, "") for number in (15, 77, 9)])]
    sizes = [
        max(listed.num_rows, seen.num_rows)
        for listed, seen in naming.named(iter(listing), in_pieces(rows, 100, catalog.SCHEMA))
    ]
    assert sum(sizes) >= 20_000
    assert max(sizes) <= 300


def test_a_plan_counts_the_images_with_names_that_the_output_cannot_hold():
    rows = [Record(key, key, 1, "") for key in ("a.jpg", "b.jpg", "long.jpg", "longer.jpg")]
    planning = Planning(
        iter([table_of(rows)]), in_order=True, shard_size=4, refused=lambda name: "no" if len(name) > 5 else None
    )
    assert [part.table.num_rows for part in planning] == [4]
    assert planning.nameless == 2
