import os
import socket
import threading

import pytest

from maskfleet.cluster.doctor import reach
from maskfleet.jobs.tools.doctor.contract import Subject


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_without_an_address_a_run_starts_a_local_ray():
    assert "a local Ray" in reach.cluster(Subject()).text
    assert reach.shared_memory(Subject()).verdict in ("ok", "warning")


def test_the_token_of_a_local_ray(tmp_path, monkeypatch):
    assert reach.local_access({}).text == "a local Ray has a token of its own and no dashboard"
    assert reach.local_access({"RAY_AUTH_MODE": "disabled"}).verdict == "warning"
    token = tmp_path / "token"
    assert reach.local_access({"RAY_AUTH_TOKEN_PATH": str(token)}).verdict == "problem"
    token.write_text("canary")
    token.chmod(0o644)
    found = reach.local_access({"RAY_AUTH_TOKEN_PATH": str(token)})
    assert (found.verdict, found.remedy) == ("warning", f"chmod 600 {token}")
    token.chmod(0o600)
    assert reach.local_access({"RAY_AUTH_TOKEN_PATH": str(token)}).verdict == "ok"
    found = reach.local_access({"RAY_AUTH_TOKEN": "canary"})
    assert (found.verdict, "canary" in found.text) == ("ok", False)


def test_a_little_shared_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(reach, "OBJECT_STORE_BYTES", 2**60)
    assert reach.shared_memory(Subject()).verdict == "warning"


@pytest.fixture
def silent():
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: [server.accept() for _ in range(9)], daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_an_address_without_a_cluster_is_a_problem(silent, monkeypatch):
    monkeypatch.setattr("maskfleet.cluster.auth._SECONDS", 8)
    for address in ("127.0.0.1:9", silent):
        found = reach.cluster(Subject(address=address))
        assert (found.verdict, "no Ray cluster answers" in found.text) == ("problem", True)
    assert os.environ.get("RAY_AUTH_MODE") is None
