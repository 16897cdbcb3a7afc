import threading

import pytest

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.inputs.record import Record, tables
from maskfleet.jobs.planning.live_plan import LivePlan, manifest_of
from maskfleet.jobs.planning.plan import Planning, first_part
from maskfleet.jobs.storage.local import LocalStorage


def records(count):
    return [Record(f"k{number:05}.png", f"/in/k{number:05}.png", number, f"e{number}") for number in range(count)]


def test_the_first_shards_start_before_the_listing_ends(tmp_path):
    listed = []

    def slow():
        for record in records(60_000):
            listed.append(record.key)
            yield record

    planning = Planning(tables(slow()), in_order=True, shard_size="auto")
    parts = iter(planning)
    first = first_part(parts)
    assert len(listed) < 30_000
    live = LivePlan(LocalStorage(str(tmp_path)), "r", planning=planning, first=first, parts=parts)
    shards = live.shards()
    assert next(shards).id == "00000"
    assert sum(len(shard) for shard in shards if shard) + 512 == 60_000
    assert live.frozen.whole
    live.close()


def test_a_listing_error_is_raised_with_the_next_shard(tmp_path):
    def broken():
        yield from records(60_000)
        raise StorageError("the bucket is gone")

    planning = Planning(tables(broken()), in_order=True, shard_size="auto")
    parts = iter(planning)
    live = LivePlan(LocalStorage(str(tmp_path)), "r", planning=planning, first=first_part(parts), parts=parts)
    with pytest.raises(StorageError, match="bucket is gone"):
        list(live.shards())
    live.close()
    assert not LocalStorage(str(tmp_path)).exists("runs/r/manifest/frozen.json")


def test_an_incomplete_plan_reports_its_stored_parts(tmp_path):
    """The first worker reads the plan while the input is still being listed."""
    go_on = threading.Event()

    def slow():
        yield from records(20_000)
        go_on.wait(60)
        yield from []

    planning = Planning(tables(slow()), in_order=True, shard_size=64)
    parts = iter(planning)
    live = LivePlan(LocalStorage(str(tmp_path)), "r", planning=planning, first=first_part(parts), parts=parts)
    assert not live.frozen.whole
    assert live.frozen.images > 0
    go_on.set()
    assert sum(len(shard) for shard in live.shards() if shard) == 20_000
    assert (live.frozen.whole, live.frozen.images) == (True, 20_000)
    live.close()


def test_one_part_can_be_read_as_a_manifest():
    planning = Planning(tables(records(10)), in_order=True, shard_size=4)
    manifest = manifest_of(first_part(iter(planning)))
    assert (manifest.images, manifest.frozen.shards, manifest.frozen.whole) == (10, 3, False)
    assert manifest_of(first_part(iter([]))).images == 0
