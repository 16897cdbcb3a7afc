import pytest

from maskfleet.cluster import sizing
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

GPU4, CPU8, HEAD = {"CPU": 16, "GPU": 4}, {"CPU": 8}, {"memory": 1.0}
GIB = 2.0**30


def job(*sets):
    return Job.of({"input": "/in", "output": "/out", "weights": "nuclei"}, sets)


@pytest.mark.parametrize(
    ("sets", "nodes", "left", "target", "needs"),
    [
        ([], [CPU8], 100, 1, (8, 0)),
        ([], [CPU8, CPU8, HEAD], 100, 2, (8, 0)),
        ([], [GPU4, GPU4, CPU8], 100, 8, (1, 1)),
        ([], [GPU4, GPU4], 3, 3, (1, 1)),
        ([], [], 100, 1, (1, 0)),
        (["inference.device=cpu"], [GPU4], 100, 2, (8, 0)),
        (["inference.device=cuda"], [HEAD], 100, 1, (1, 1)),
        (["cluster.gpus_per_worker=0.5"], [GPU4], 100, 8, (1, 0.5)),
        (["cluster.gpus_per_worker=0.1"], [{"CPU": 4, "GPU": 1}], 100, 10, (1, 0.1)),
        (["cluster.gpus_per_worker=0.6"], [GPU4, GPU4], 100, 8, (1, 0.6)),
        (["cluster.workers=3"], [CPU8, CPU8], 100, 3, (4, 0)),
        (["cluster.workers=30"], [CPU8], 100, 30, (1, 0)),
        (["cluster.workers=3"], [CPU8], 1, 1, (2, 0)),
        (["cluster.workers={min=2, max=5}"], [GPU4], 100, 5, (1, 1)),
        (["cluster.workers={min=2, max=5}"], [GPU4], 0, 2, (1, 1)),
        (["cluster.workers={max=5}", "cluster.cpus_per_worker=3"], [GPU4], 4, 4, (3, 1)),
    ],
)
def test_workers_and_what_each_needs(sets, nodes, left, target, needs):
    assert sizing.target(job(*sets), nodes, left, 8) == target
    assert sizing.needs(job(*sets), nodes, 8) == needs


@pytest.mark.parametrize(
    ("threads", "nodes", "target", "cpus"),
    [
        (2, [{"CPU": 2}], 1, 2),
        (2, [{"CPU": 2}, {"CPU": 16}], 9, 2),
        (4, [{"CPU": 2}, {"CPU": 16}], 9, 2),
        (4, [{"CPU": 0}, {"CPU": 16}, {"CPU": 6}], 5, 4),
        (8, [{"CPU": 64, "memory": 256 * GIB}], 8, 8),
        (2, [{"CPU": 16, "memory": 8 * GIB}], 4, 4),
        (2, [{"CPU": 16, "memory": 1 * GIB}], 1, 16),
        (2, [], 1, 1),
    ],
)
def test_without_gpus_a_node_has_a_worker_for_every_so_many_cores(threads, nodes, target, cpus):
    assert sizing.needs(job(), nodes, threads) == (cpus, 0)
    assert sizing.target(job(), nodes, 100, threads) == target
    assert all(sizing.needs(job(), nodes, threads).fit(node) for node in nodes if node["CPU"] >= 2)


@pytest.mark.parametrize(
    "bad", ["workers=0", "workers={min=3, max=2}", "workers={maxx=2}", "gpus_per_worker=2", "workers=many"]
)
def test_what_no_cluster_can_be(bad):
    with pytest.raises(JobError, match=bad.partition("=")[0]):
        job(f"cluster.{bad}")
