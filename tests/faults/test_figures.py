"""The faults of docs/guarantees.md, smaller; at their full figures with `python -m tests.faults`."""

import pytest
from faults.figures import disks, drivers, line, on_ray
from faults.servers import S3Server, s3_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


def sound(figure) -> bool:
    print(figure)
    return figure.times > 0 and not (figure.problems or figure.lost or figure.doubled)


def test_f2_a_frozen_node():
    assert sound(on_ray.frozen_node(quick=True))


@pytest.mark.s3
def test_f3_racing_commits(server):
    assert sound(line.racing_commits(server, shards=20))


def test_f5_killed_drivers():
    assert sound(drivers.driver_kills(4))


@pytest.mark.full
def test_f7_two_names():
    assert sound(drivers.two_names(2))


@pytest.mark.full
@pytest.mark.s3
def test_f8_an_outage(server):
    assert sound(line.outage(server, seconds=3, images=6))


@pytest.mark.full
@pytest.mark.s3
def test_f10_torn_answers(server):
    assert sound(line.torn_answers(server, share=0.3, images=6))


@pytest.mark.full
@pytest.mark.s3
def test_f11_killed_gateways(server: S3Server):
    if server.kind != "radosgw":
        pytest.skip("moto's server keeps its data in memory: killed, it has lost them")
    assert sound(line.gateway_kills(server, kills=2))


@pytest.mark.s3
@pytest.mark.parametrize("answer", line.UNCONDITIONAL)
def test_f13_storage_without_conditions(server, answer):
    assert sound(line.by_the_driver(server, answer))


def test_f18_a_full_disk():
    if not disks.can_mount():
        pytest.skip("this process may not mount a small file system")
    assert sound(disks.full_disks(range(24, 240, 72)))


@pytest.mark.full
def test_f19_inputs_that_change():
    assert sound(drivers.changed_inputs())


def test_f25_synced_records():
    if not disks.has_strace():
        pytest.skip("strace is not installed")
    assert sound(disks.synced(3))


@pytest.mark.full
def test_a_wrong_clock():
    assert sound(drivers.wrong_clocks())
