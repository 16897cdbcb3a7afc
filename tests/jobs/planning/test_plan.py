import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.inputs.record import Record, tables
from maskfleet.jobs.job.sections import Selection
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.planning.plan import Planning


def records(count):
    return [
        Record(f"k{number:05}.png", f"/in/k{number:05}.png", number, f"e{number}", float(number))
        for number in range(count)
    ]


def known(*rows):
    base = {"etag": "e1", "fingerprint": "f", "status": "ok", "run_id": "r", "input": "in"}
    return [pa.Table.from_pylist([{**base, "key": key, **more} for key, more in sorted(rows)], catalog.SCHEMA)]


def planned(listed, rows=(), *, in_order=True, size="auto", **selection):
    planning = Planning(
        tables(listed), in_order=in_order, shard_size=size, known=rows, fingerprint="f", source="in",
        selection=Selection(**selection),
    )  # fmt: skip
    parts = [part.table for part in planning]
    found = pa.concat_tables(parts).to_pylist() if parts else []
    return planning, {row["key"]: row["why"] for row in found}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.one_of(st.just("auto"), st.integers(1, 7)), st.integers(0, 200), st.randoms())
def test_every_unfinished_image_is_planned_once_in_order(count, size, finished, random):
    listed = records(count)
    random.shuffle(listed)
    rows = [(record.key, {"etag": record.etag}) for record in listed[:finished]]
    planning, found = planned(listed, known(*rows), in_order=False, size=size)
    assert list(found) == sorted(record.key for record in listed[finished:])
    assert (planning.listed, planning.images, planning.done) == (count, len(found), count - len(found))
    assert planning.reasons == ({"new": len(found)} if found else {})


def test_large_listings_are_sorted_on_disk(monkeypatch):
    monkeypatch.setattr("maskfleet.jobs.planning.external_sort._RUN_ROWS", 50)
    monkeypatch.setattr("maskfleet.jobs.planning.external_sort.CHUNK", 20)
    listed = records(333)
    shuffled = listed[::7] + [record for place, record in enumerate(listed) if place % 7]
    assert list(planned(shuffled, in_order=False)[1]) == [record.key for record in listed]


def test_known_images_are_planned_for_a_reason():
    rows = known(
        ("k00001.png", {}),
        ("k00002.png", {"etag": "other"}),
        ("k00003.png", {"etag": "e3", "fingerprint": "g"}),
        ("k00004.png", {"etag": "e4", "status": "failed", "stage": "decode", "error_class": "corrupt"}),
        ("k00005.png", {"etag": "e5", "status": "failed", "stage": "fetch", "error_class": "missing"}),
        ("k00006.png", {"etag": "e6", "status": "gone"}),
        ("vanished.png", {}),
        ("zz-other-input.png", {"input": "elsewhere"}),
    )
    planning, found = planned(records(7), rows)
    expected = {
        "k00000.png": "new", "k00002.png": "changed", "k00003.png": "stale", "k00005.png": "failed",
        "k00006.png": "new",
    }  # fmt: skip
    assert found == expected
    assert planning.gone == 1
    assert planning.take_gone()["key"].to_pylist() == ["vanished.png"]
    assert planned(records(7), rows, only=["changed", "stale"])[1] == {"k00002.png": "changed", "k00003.png": "stale"}
    assert planned(records(7), rows, classes=["decode"])[1] == {"k00004.png": "failed"}
    assert planned(records(7), rows, classes=["io", "decode"])[1].keys() == {"k00004.png", "k00005.png"}
    assert planned(records(7), rows, since="1970-01-01T00:00:03")[1].keys() == {
        "k00003.png",
        "k00005.png",
        "k00006.png",
    }


def test_a_limit_ends_the_listing_but_a_sample_does_not():
    taken = []

    def counted():
        for record in records(30_000):
            taken.append(record.key)
            yield record

    planning, found = planned(counted(), limit=3)
    assert (list(found), planning.complete) == (["k00000.png", "k00001.png", "k00002.png"], False)
    assert len(taken) < 30_000
    planning, found = planned(records(30_000), sample=10)
    assert (len(found), planning.complete, planning.listed) == (10, True, 30_000)
    assert found == planned(records(30_000), sample=10)[1]
    assert list(found) == sorted(found)
    assert list(found)[-1] > "k10000.png"


def test_a_second_file_of_one_key_is_a_record_that_cannot_be_read():
    again = Record("k00001.png", "/elsewhere", 1, "e")
    for in_order, listing in ((False, [again, *records(3), again]), (True, [*records(2), again, *records(3)[2:]])):
        _, found = planned(listing, in_order=in_order)
        assert [key.partition("@")[0] for key in found] == ["k00000.png", "k00001.png", "k00001.png", "k00002.png"]


def test_an_unsorted_listing_is_refused():
    with pytest.raises(StorageError, match="not listed in key order .*use that as 'input'"):
        planned(records(3)[::-1])
