from hypothesis import given
from hypothesis import strategies as st

from jobs import pipeline as module
from jobs.inputs.sources import Record

RECORDS = st.lists(
    st.builds(Record, st.just("k"), st.sampled_from(["/a/b.png", "s3://a/b.png"]), st.none() | st.integers(0, 2**21), st.none()),
    max_size=60,
)  # fmt: skip


@given(RECORDS)
def test_small_local_files_are_fetched_together_and_all_others_alone(records):
    parts = list(module._fetch_groups(records))
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(len(records)))
    for part in parts:
        group = records[part]
        assert len(group) <= module._FETCHED_TOGETHER
        if len(group) > 1:
            assert not any(record.url.startswith("s3://") for record in group)
            assert all(record.size is not None for record in group)
            assert sum(record.size for record in group) <= module._SMALL_BYTES


def test_a_folder_of_small_files_takes_few_threads():
    records = [Record(str(number), f"/a/{number}", 1000, None) for number in range(40)]
    assert [part.stop - part.start for part in module._fetch_groups(records)] == [16, 16, 8]
