import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskfleet.jobs.images.decoders import Failure
from maskfleet.jobs.inputs.fetch import Reader
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run import pipeline as module
from maskfleet.jobs.run.execute import run

URLS = ["/a/b.png", "s3://a/b.png", "/a.tar#offset=512&size=9", "s3://a/b.tar#offset=512&size=9"]
RECORDS = st.lists(
    st.builds(Record, st.just("k"), st.sampled_from(URLS), st.none() | st.integers(0, 2**21), st.none()), max_size=60
)


@given(RECORDS)
def test_small_files_and_parts_are_taken_together_and_objects_alone(records):
    parts = list(module._fetch_groups(records))
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(len(records)))
    for part in parts:
        group = records[part]
        assert len(group) <= module._FETCHED_TOGETHER
        kinds = {module._kind(record) for record in group}
        assert len(kinds) == 1
        if len(group) > 1:
            assert kinds != {"object"}
            assert all(record.size is not None for record in group)
            assert sum(record.size for record in group) <= module._SMALL_BYTES


def test_a_folder_is_handed_on_in_the_groups_that_are_decoded():
    records = [Record(str(number), f"/a/{number}", 1000, None) for number in range(40)]
    assert [part.stop - part.start for part in module._fetch_groups(records)] == [16, 16, 8]


def test_the_process_that_runs_the_network_reads_no_local_file(images, tmp_path, weights_file, monkeypatch):
    job = Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file})
    read = Reader.read

    def remote(self, record):
        # What chooses the precision looks at a few images before the pipeline does.
        return read(self, record) if not pipelines else pytest.fail(f"{record.url} was read")

    pipelines = []
    opened = module.Pipeline.run

    def run_with(self, *arguments):
        pipelines.append(self)
        return opened(self, *arguments)

    monkeypatch.setattr(module.Pipeline, "run", run_with)
    monkeypatch.setattr(Reader, "read", remote)
    assert run(job).ok == 24
    assert pipelines


@pytest.mark.parametrize(("first", "then"), [(700, module._ALLOCATIONS), (0, 0), (10**6, 10**6)])
def test_collections_of_garbage_are_rare_where_a_pipeline_runs(images, tmp_path, weights_file, first, then):
    job = Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file})
    seen = []
    before = gc.get_threshold()
    gc.set_threshold(first, *before[1:])
    try:
        run(job, on_progress=lambda *_: seen.append(gc.get_threshold()))
    finally:
        gc.set_threshold(*before)
    assert seen[-1] == (then, *before[1:])


def test_a_local_file_that_is_large_is_read_in_rows(images, tmp_path, weights_file, monkeypatch):
    job = Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file})
    sizes = sorted(path.stat().st_size for path in images.rglob("*") if path.is_file())
    monkeypatch.setattr(module, "STREAM_BYTES", sizes[20])
    in_rows = []

    def stream(self, record, outcome, *_):
        in_rows.append(record.size)
        outcome.failure = Failure("decode", "corrupt", "seen")

    monkeypatch.setattr(module.Pipeline, "_stream", stream)
    assert run(job).failed == len(in_rows) > 0
    assert sorted(in_rows) == [size for size in sizes if size > sizes[20]]
