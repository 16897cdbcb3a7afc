import threading

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run import executor
from maskfleet.jobs.run.execute import run


def test_two_shards_are_in_progress_at_once(images, tmp_path, weights_file, monkeypatch):
    job = Job.of({"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file}, ["run.shard_size=6"])
    both, done = threading.Barrier(2, timeout=60), executor.run_shard

    def together(*arguments):
        both.wait()
        return done(*arguments)

    monkeypatch.setattr(executor, "run_shard", together)
    assert run(job).ok == 24
