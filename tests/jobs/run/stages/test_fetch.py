from hypothesis import given
from hypothesis import strategies as st

from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.run.stages import fetch

URLS = ["/a/b.png", "s3://a/b.png", "/a.tar#offset=512&size=9", "s3://a/b.tar#offset=512&size=9"]
RECORDS = st.lists(
    st.builds(Record, st.just("k"), st.sampled_from(URLS), st.none() | st.integers(0, 2**21), st.none()), max_size=60
)


@given(RECORDS)
def test_small_files_and_members_form_groups_and_objects_stay_alone(records):
    parts = list(fetch.fetch_groups(records))
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(len(records)))
    for part in parts:
        group = records[part]
        assert len(group) <= fetch._GROUP
        kinds = {fetch._kind(record) for record in group}
        assert len(kinds) == 1
        if len(group) > 1:
            assert kinds != {"object"}
            assert all(record.size is not None for record in group)
            assert sum(record.size for record in group) <= fetch._GROUP_BYTES


def test_the_files_of_a_folder_form_the_groups_that_are_decoded():
    records = [Record(str(number), f"/a/{number}", 1000, None) for number in range(40)]
    assert [part.stop - part.start for part in fetch.fetch_groups(records)] == [16, 16, 8]
