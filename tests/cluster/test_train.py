"""Training on two workers with Ray Train, on a real local Ray."""

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from conftest import draw_pairs, seeded
from faults import trainers

from maskfleet.cluster import train
from maskfleet.cluster.connection import ClusterError, connected
from maskfleet.cluster.driver import Fleet
from maskfleet.cluster.train import needs_of, on_ray
from maskfleet.jobs.errors import JobError, Stopped
from maskfleet.jobs.job.machines import Cluster as ClusterSettings
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.training.finetune import finetune
from maskfleet.jobs.training.plan import plan_training
from maskfleet.unet import weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 12


@pytest.fixture(scope="module")
def address():
    """A Ray cluster with four CPUs; its workers can import the test modules."""
    pytest.importorskip("pandas", reason="the extra 'train' is not installed")
    from ray.cluster_utils import Cluster

    here = os.path.dirname(os.path.dirname(__file__))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]))
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 4, "object_store_memory": 128 * 2**20, "include_dashboard": False},
        )
        try:
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture
def job(tmp_path):
    images, masks = draw_pairs(tmp_path, 24)
    base = tmp_path / "base.safetensors"
    base.write_bytes(weights.save(seeded(width=2), mask_values=(0, 255)))

    def job(output, **settings):
        return Job.of({
            "input": str(images),
            "output": str(tmp_path / output),
            "weights": str(base),
            "cluster": {"threads": 1, "cpus_per_worker": 1},
            "finetune": {
                "images": str(images), "masks": str(masks), "steps": STEPS, "crop": 32, "batch_size": 4,
                "validate_every": 6, "save_every": 3, "gate": "off", "learning_rate": 1e-3,
            } | settings,
        })  # fmt: skip

    return job


def losses(result):
    table = pq.read_table(io.BytesIO(Path(result.weights).with_name("metrics.parquet").read_bytes()))
    assert table["step"].to_pylist() == list(range(1, STEPS + 1))
    return table["loss"].to_pylist()


def test_after_a_killed_worker_the_loss_curve_equals_that_of_one_worker(job, address):
    seen = []
    two = job("two", workers=2, sync_batchnorm=True)
    made = finetune(two, loop=on_ray(address, worker_loop=trainers.killed_once), on_step=seen.append)
    assert Path(two.output, "killed").exists()
    assert losses(made) == pytest.approx(losses(finetune(job("one"))), rel=0.02)
    assert seen[-1].step.number == STEPS
    again = finetune(two, loop=on_ray("127.0.0.1:1"))  # a finished training needs no Ray
    assert again.record == made.record


def test_an_error_of_a_worker_is_reported_once_and_not_retried(job, address):
    two = job("out", workers=2)
    with connected(address, {}):
        mailbox = ray.remote(num_cpus=0)(train._Mailbox).remote()
        config = train._WorkerConfig(
            job=two, plan_id=plan_training(two).id, generation=1, threads=1, gpu=False, loop=trainers.wrong,
            mailbox=mailbox,
        )  # fmt: skip
        with pytest.raises(JobError, match="^the pairs are wrong; correct them$"):
            train._work({"config": config})
        assert str(ray.get(mailbox.error.remote())) == "the pairs are wrong; correct them"
        train._work({"config": config})  # as Ray Train restarts it
        again = ray.remote(num_cpus=0)(train._Mailbox).remote()
        with pytest.raises(JobError, match="pairs or weights changed while training was starting"):
            train._work({"config": replace(config, plan_id="another", mailbox=again)})


def test_a_stopped_training_keeps_its_finished_steps(job, address):
    two = job("out", workers=2, steps=100_000)
    reports = []
    with pytest.raises(Stopped):
        finetune(two, loop=on_ray(address), on_step=reports.append, stopped=lambda: bool(reports))
    records = Path(two.output).glob("finetune/*/checkpoints/*.json")
    assert max(json.loads(record.read_text())["step"] for record in records) >= reports[0].step.number


def test_more_workers_than_fit_on_the_machine_are_refused(job, address):
    with connected(address, {}):
        needs = needs_of(job("out", workers=4).model_copy(update={"cluster": ClusterSettings()}), own=True)
        assert needs == (1, 0)
        with pytest.raises(ClusterError, match=r"workers = 8 needs 1 CPU and 0 GPU per worker.* has room for 4; lower"):
            needs_of(job("out", workers=8, batch_size=8), own=True)
        assert needs_of(job("out", workers=8, batch_size=8), own=False) == (1, 0)  # a cluster may grow


def test_without_ray_or_its_extra_only_one_worker_is_possible(job, address, monkeypatch):
    with pytest.raises(JobError, match="needs Ray; omit --no-ray, or set it to 1"):
        finetune(job("out", workers=2))
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    with pytest.raises(JobError, match=r"needs Ray Train; pip install 'maskfleet\[train\]', or set it to 1"):
        finetune(job("out", workers=2), loop=on_ray(address))
    with pytest.raises(JobError, match="needs Ray Train"):
        run(job("out", workers=2), Fleet(address))
