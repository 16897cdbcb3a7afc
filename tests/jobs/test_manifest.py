import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import JobError
from jobs.manifest import Manifest, Plan, Shard, mask_names
from jobs.sources import Record
from jobs.storage import LocalStorage


def names(keys):
    return mask_names(pa.chunked_array([pa.array(keys, pa.string())])).to_pylist()


def test_a_mask_is_named_by_its_key():
    assert names(["a.jpg", "b/c.d.tif", "e", "f.PNG"]) == ["a.png", "b/c.d.png", "e.png", "f.png"]


def test_inputs_that_differ_only_in_their_ending_keep_it():
    assert names(["a.jpg", "a.png", "b.jpg"]) == ["a.jpg.png", "a.png.png", "b.png"]
    # And what their names then collide with keeps its ending too.
    assert names(["a.jpg", "a.png", "a.jpg.bmp"]) == ["a.jpg.png", "a.png.png", "a.jpg.bmp.png"]


def test_names_never_lead_out_of_a_folder():
    assert names(["../a.jpg", "b/./c.jpg", "/d.jpg", "e//f.jpg", "g\n.jpg", "h\\i.jpg"]) == [
        *("%2E%2E/a.png", "b/%2E/c.png", "%/d.png", "e/%/f.png", "g%0A.png", "h%5Ci.png")
    ]


KEYS = st.lists(
    st.text(alphabet="ab./%", min_size=1, max_size=6).flatmap(
        lambda stem: st.sampled_from([stem, stem + ".jpg", stem + ".png"])
    ),
    unique=True,
    min_size=1,
    max_size=12,
)


@settings(max_examples=400)
@given(KEYS)
def test_names_are_distinct_safe_and_need_no_other_order(keys):
    try:
        found = names(keys)
    except JobError as error:
        assert "%" in "".join(keys), error  # only keys that look encoded already can collide for good
        return
    assert len(set(found)) == len(keys)
    assert all(name.endswith(".png") for name in found)
    assert all(part not in ("", ".", "..") for name in found for part in name.split("/"))
    assert dict(zip(keys, found, strict=True)) == dict(zip(reversed(keys), names(keys[::-1]), strict=True))


def records(count):
    return [Record(f"k{number:05}.png", f"/in/k{number:05}.png", number, f"e{number}") for number in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.one_of(st.just("auto"), st.integers(1, 70)), st.integers(0, 200), st.randoms())
def test_every_image_that_is_not_done_is_in_exactly_one_shard(tmp_path_factory, count, size, finished, random):
    listed = records(count)
    random.shuffle(listed)
    done = listed[:finished]
    table = pa.table(
        {"key": [r.key for r in done], "etag": [r.etag for r in done]},
        pa.schema({"key": pa.string(), "etag": pa.string()}),
    )
    plan = Plan.of(listed, shard_size=size, done=table)
    assert plan.listed == count
    storage = LocalStorage(str(tmp_path_factory.mktemp("plan")))
    storage.write("m.parquet", plan.parquet())
    manifest = Manifest(storage.read("m.parquet"))
    shards = list(manifest.shards())
    assert len(shards) == plan.shards
    found = [record for shard in shards for record, _ in manifest.records(shard)]
    assert found == sorted(listed[finished:])
    assert all(len(shard) == len(manifest.records(shard)) > 0 for shard in shards)
    if isinstance(size, int):
        assert all(len(shard) == size for shard in shards[:-1])


def test_a_changed_image_is_not_done():
    done = pa.table({"key": ["k00001.png", "k00002.png"], "etag": ["e1", "other"]})
    assert Plan.of(records(3), shard_size=1, done=done).table["key"].to_pylist() == ["k00000.png", "k00002.png"]


def test_a_key_that_is_listed_twice_is_refused():
    with pytest.raises(JobError, match="two inputs have the key 'k00001.png'"):
        Plan.of([*records(3), Record("k00001.png", "/elsewhere", 1, "e")], shard_size=1)


@given(st.integers(2, 1000))
def test_halves_are_the_whole(size):
    shard = Shard("00007", 3, 3 + size)
    one, two = shard.halves()
    assert (one.start, one.stop, two.stop) == (3, two.start, shard.stop)
    assert len(one) > 0
    assert len(two) > 0
    assert (one.id, two.id, one.group) == ("00007.0", "00007.1", 7)


def test_one_record_cannot_be_cut():
    with pytest.raises(ValueError, match="cannot be cut"):
        Shard("00000", 0, 1).halves()
