"""Training on two workers through Ray Train, on a real local Ray."""

import io
import json
import os
import sys
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
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Cluster as ClusterSettings
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.training.finetune import finetune, plan_of
from maskfleet.unet import weights

pytestmark = pytest.mark.ray

STEPS = 12


@pytest.fixture(scope="module")
def address():
    """A Ray of four processors, whose workers can import what the tests give them."""
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


def losses(outcome):
    table = pq.read_table(io.BytesIO(Path(outcome.weights).with_name("metrics.parquet").read_bytes()))
    assert table["step"].to_pylist() == list(range(1, STEPS + 1))
    return table["loss"].to_pylist()


def test_a_killed_worker_costs_the_way_from_the_last_checkpoint_and_the_curve_is_that_of_one(job, address):
    seen = []
    two = job("two", workers=2, sync_batchnorm=True)
    made = finetune(two, train=on_ray(address, steps_of=trainers.killed_once), progress=seen.append)
    assert Path(two.output, "killed").exists()
    assert losses(made) == pytest.approx(losses(finetune(job("one"))), rel=0.02)
    assert seen[-1].step.number == STEPS
    again = finetune(two, train=on_ray("127.0.0.1:1"))  # done, it needs no Ray
    assert again.record == made.record


def test_what_a_worker_finds_wrong_is_told_once_and_not_tried_again(job, address):
    two = job("out", workers=2)
    with connected(address, {}):
        desk = ray.remote(num_cpus=0)(train._Desk).remote()
        config = {"job": two, "id": plan_of(two).id, "generation": 1, "threads": 1, "gpu": False, "desk": desk}
        with pytest.raises(JobError, match="^the pairs are wrong; correct them$"):
            train._work(config | {"steps_of": trainers.wrong})
        assert str(ray.get(desk.error.remote())) == "the pairs are wrong; correct them"
        train._work(config | {"steps_of": trainers.wrong})  # as Ray Train starts it again
        again = ray.remote(num_cpus=0)(train._Desk).remote()
        with pytest.raises(JobError, match="the pairs or weights changed while the training started"):
            train._work(config | {"id": "another", "desk": again})


def test_stopped_it_keeps_what_is_done(job, address):
    two = job("out", workers=2, steps=100_000)
    moments = []
    with pytest.raises(Stopped):
        finetune(two, train=on_ray(address), progress=moments.append, stopped=lambda: bool(moments))
    records = Path(two.output).glob("finetune/*/checkpoints/*.json")
    assert max(json.loads(record.read_text())["step"] for record in records) >= moments[0].step.number


def test_more_workers_than_the_machine_has_room_for_are_refused(job, address):
    with connected(address, {}):
        needs = needs_of(job("out", workers=4).model_copy(update={"cluster": ClusterSettings()}), own=True)
        assert needs == (1, 0)
        with pytest.raises(ClusterError, match=r"workers = 8 asks for 1 CPUs and 0 GPUs each.* has room for 4; lower"):
            needs_of(job("out", workers=8, batch_size=8), own=True)
        assert needs_of(job("out", workers=8, batch_size=8), own=False) == (1, 0)  # more machines may come


def test_without_ray_or_its_extra_there_is_one_worker(job, address, monkeypatch):
    with pytest.raises(JobError, match="needs Ray; leave --no-ray out, or set it to 1"):
        finetune(job("out", workers=2))
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    with pytest.raises(JobError, match=r"needs Ray Train \(.*\); pip install 'maskfleet\[train\]', or set it to 1"):
        finetune(job("out", workers=2), train=on_ray(address))
    with pytest.raises(JobError, match="needs Ray Train"):
        run(job("out", workers=2), Fleet(address))
