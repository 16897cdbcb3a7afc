import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskfleet.jobs.errors import Locked
from maskfleet.jobs.inputs.record import Record, tables
from maskfleet.jobs.ledger.manifest import PART_SHARDS, Manifest, Shard, freeze_so_far
from maskfleet.jobs.planning.live_plan import LivePlan
from maskfleet.jobs.planning.plan import Planning, first_part
from maskfleet.jobs.storage.local import LocalStorage


def records(count):
    return [Record(f"k{number:05}.png", f"/in/k{number:05}.png", number, f"e{number}") for number in range(count)]


def stored(storage, listed, size):
    planning = Planning(tables(listed), in_order=True, shard_size=size)
    parts = iter(planning)
    live = LivePlan(storage, "r", planning=planning, first=first_part(parts), parts=parts)
    shards = [shard for shard in live.shards() if shard]
    live.close()
    return shards


def test_a_plan_is_read_back_part_by_part(tmp_path):
    storage = LocalStorage(str(tmp_path))
    listed = records(PART_SHARDS * 3 * 2 + 4)
    shards = stored(storage, listed, 3)
    manifest = Manifest.stored(storage, "r")
    assert manifest.is_frozen
    assert (manifest.images, manifest.frozen.parts, manifest.frozen.shards) == (196, 3, 66)
    assert list(manifest.shards()) == shards
    assert [record for shard in shards for record, _ in manifest.records(shard)] == listed
    assert manifest.records(Shard("00033.1", 1, 3))[0][0] == listed[100]
    assert manifest.find("k00100.png")["shard"] == "00033"
    assert manifest.find("k00100.jpg") is None
    assert manifest.sample(5) == [listed[place] for place in (0, 18, 36, 57, 75)]


def test_an_interrupted_plan_consists_of_its_stored_parts(tmp_path):
    storage = LocalStorage(str(tmp_path))
    listed = records(PART_SHARDS * 3 * 2 + 4)
    shards = stored(storage, listed, 3)
    for name in ("frozen.json", "part-00002.parquet"):
        storage.delete(f"runs/r/manifest/{name}")
    live = Manifest.stored(storage, "r")
    assert not live.is_frozen
    assert list(live.shards()) == shards[:64]
    freeze_so_far(storage, "r")
    manifest = Manifest.stored(storage, "r")
    assert (manifest.is_frozen, manifest.frozen.whole, manifest.images) == (True, False, 192)
    assert [record for shard in manifest.shards() for record, _ in manifest.records(shard)] == listed[:192]


def test_a_driver_superseded_while_planning_cannot_extend_the_plan(tmp_path):
    storage = LocalStorage(str(tmp_path))
    listed = records(PART_SHARDS * 3 * 2 + 4)
    planning = Planning(tables(listed), in_order=True, shard_size=3)
    parts = iter(planning)
    first, wakes_up = first_part(parts), threading.Event()

    def rest():
        wakes_up.wait(60)
        yield from parts

    live = LivePlan(storage, "r", planning=planning, first=first, parts=rest())
    freeze_so_far(storage, "r")  # as the successor does
    wakes_up.set()
    with pytest.raises(Locked, match="took over .* while this one was planning"):
        list(live.shards())
    live.close()
    assert Manifest.stored(storage, "r").images == PART_SHARDS * 3


@given(st.integers(2, 1000))
def test_the_halves_of_a_shard_cover_it(size):
    shard = Shard("00007", 3, 3 + size)
    one, two = shard.halves()
    assert (one.start, one.stop, two.stop) == (3, two.start, shard.stop)
    assert len(one) > 0
    assert len(two) > 0
    assert (one.id, two.id, one.group) == ("00007.0", "00007.1", 7)


def test_a_shard_of_one_record_cannot_be_split():
    with pytest.raises(ValueError, match="cannot be split"):
        Shard("00000", 0, 1).halves()
