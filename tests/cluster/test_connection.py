import os
import socket
import sys
import threading
import time
from contextlib import closing

import pytest
import ray

from maskfleet.cluster.connection import WORKER_ENVIRONMENT, ClusterError, Connection, connected


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def environment_of_a_worker() -> dict[str, str]:
    @ray.remote(num_cpus=1)
    def look() -> dict[str, str]:
        return dict(os.environ)

    return ray.get(look.remote())


def test_a_ray_of_ones_own_gives_its_workers_their_environment_and_ends():
    with connected("local", {"MASKFLEET_TEST": "seen"}) as runtime_env:
        assert runtime_env is None
        assert environment_of_a_worker()["MASKFLEET_TEST"] == "seen"
        assert "MASKFLEET_TEST" not in os.environ
    assert not ray.is_initialized()


def test_workers_do_not_have_the_working_directory_on_their_path(tmp_path, monkeypatch):
    @ray.remote(num_cpus=1)
    def path() -> list[str]:
        return sys.path

    monkeypatch.chdir(tmp_path)
    with connected("local", {}):
        assert str(tmp_path) not in ray.get(path.remote())


def test_a_connection_that_was_begun_is_there_when_it_is_entered():
    with closing(Connection("local")) as connection:
        connection.begin()
        with connection as runtime_env:
            assert runtime_env is None
            found = environment_of_a_worker()
            assert {name: found[name] for name in WORKER_ENVIRONMENT} == WORKER_ENVIRONMENT
        assert not ray.is_initialized()


@pytest.mark.slow
def test_it_may_be_entered_again_as_by_a_run_whose_plan_was_cut_off():
    with closing(Connection("local")) as connection:
        connection.begin()
        for _ in range(2):
            with connection:
                assert ray.is_initialized()
            assert not ray.is_initialized()


def test_one_that_was_begun_and_never_needed_leaves_nothing_behind(monkeypatch):
    threads = set(threading.enumerate())
    shutdown = ray.shutdown
    alive = []

    def recorded():
        alive.append(any(thread.name.startswith("connection") for thread in threading.enumerate()))
        shutdown()

    monkeypatch.setattr(ray, "shutdown", recorded)
    with closing(Connection("local")) as connection:
        connection.begin()
    assert alive == [True], "Ray's processes die with the thread that started them"
    assert not ray.is_initialized()
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("connection")]


def test_one_that_was_not_begun_connects_when_it_is_entered():
    with closing(Connection("local")) as connection, connection:
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://10.0.0.5:8265", "is a dashboard; give HOST:PORT of the head"),
        ("ray://10.0.0.5:10001", "is no address of a Ray cluster; give HOST:PORT"),
        ("somewhere", "is no address of a Ray cluster; give HOST:PORT"),
        ("127.0.0.1:1", "nothing answers there; check --address"),
        ("127.0.0.1:99999", "nothing answers there; check --address"),
    ],
)
def test_a_wrong_address_is_refused_at_once(address, message):
    began = time.monotonic()
    with pytest.raises(ClusterError, match=message), connected(address, {}):
        pytest.fail("there is a cluster")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("answers", "message"),
    [("no head", "what listens there is no head of a cluster"), ("token", "requires a token, and this")],
)
def test_a_cluster_that_refuses_is_asked_in_a_process_of_its_own(answers, message, monkeypatch):
    monkeypatch.setattr("maskfleet.cluster.connection.refusal_of", lambda _: answers)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ClusterError, match=message):
        with connected(f"127.0.0.1:{server.getsockname()[1]}", {}):
            pytest.fail("there is a cluster")


def test_a_local_ray_that_does_not_start_is_explained(monkeypatch):
    def late(*_, **__):
        raise Exception("The current node timed out during startup. This could happen because")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(ClusterError) as error, connected("local", {}):
        pytest.fail("it started")
    assert "timed out" not in str(error.value)
    assert str(error.value).startswith("a local Ray did not start on this machine; look for the cause with")


def test_that_nobody_listens_matters_only_to_whoever_needs_it():
    with closing(Connection("127.0.0.1:1")) as connection:
        connection.begin()
        with pytest.raises(ClusterError, match=r"no Ray at 127\.0\.0\.1:1"), connection:
            pytest.fail("there is one")
    with closing(Connection("127.0.0.1:1")) as connection:
        connection.begin()
