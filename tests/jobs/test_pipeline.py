import gc

from hypothesis import given
from hypothesis import strategies as st

from jobs import pipeline as module
from jobs.inputs.sources import Record
from jobs.job import Job
from jobs.run import run

URLS = ["/a/b.png", "s3://a/b.png", "/a.tar#offset=512&size=9", "s3://a/b.tar#offset=512&size=9"]
RECORDS = st.lists(
    st.builds(Record, st.just("k"), st.sampled_from(URLS), st.none() | st.integers(0, 2**21), st.none()), max_size=60
)


@given(RECORDS)
def test_local_files_and_small_parts_are_taken_together_and_objects_alone(records):
    parts = list(module._fetch_groups(records))
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(len(records)))
    for part in parts:
        group = records[part]
        assert len(group) <= module._FETCHED_TOGETHER
        kinds = {module._kind(record) for record in group}
        assert len(kinds) == 1
        if len(group) > 1:
            assert kinds != {"object"}
        if len(group) > 1 and kinds == {"part"}:
            assert all(record.size is not None for record in group)
            assert sum(record.size for record in group) <= module._SMALL_BYTES


def test_a_folder_is_handed_on_in_the_groups_that_are_decoded():
    records = [Record(str(number), f"/a/{number}", 1000, None) for number in range(40)]
    assert [part.stop - part.start for part in module._fetch_groups(records)] == [16, 16, 8]


def test_collections_of_garbage_are_rare_where_a_pipeline_runs(images, tmp_path, weights_file):
    job = Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file})
    seen = []
    before = gc.get_threshold()
    try:
        run(job, progress=lambda *_: seen.append(gc.get_threshold()))
    finally:
        gc.set_threshold(*before)
    assert seen[-1] == (module._ALLOCATIONS, *before[1:])
