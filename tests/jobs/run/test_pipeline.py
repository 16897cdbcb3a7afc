import gc

import pytest

from maskfleet.jobs.images.contract import Failure
from maskfleet.jobs.inputs.fetch import Reader
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run import pipeline as module
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.stages import fetch
from maskfleet.jobs.run.stages.segment import SegmentInRows


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


def test_a_large_local_file_is_segmented_in_rows(images, tmp_path, weights_file, monkeypatch):
    job = Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file})
    sizes = sorted(path.stat().st_size for path in images.rglob("*") if path.is_file())
    monkeypatch.setattr(fetch, "STREAM_BYTES", sizes[20])
    in_rows = []

    def segment(self, outcome, shard):
        in_rows.append(outcome.record.size)
        outcome.fail(Failure("decode", "corrupt", "seen"))

    monkeypatch.setattr(SegmentInRows, "run", segment)
    assert run(job).failed == len(in_rows) > 0
    assert sorted(in_rows) == [size for size in sizes if size > sizes[20]]
