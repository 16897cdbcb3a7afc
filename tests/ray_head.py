"""Helper: a Ray head with a dashboard, in processes of its own, on free ports of this machine's loopback."""

import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_PORTS = (
    "port", "dashboard-port", "ray-client-server-port", "metrics-export-port", "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
)  # fmt: skip
_STARTING_SECONDS = 90


@dataclass(frozen=True)
class RayHead:
    """A running head: its ports and its session folder."""

    port: int
    dashboard_port: int
    metrics_port: int
    session: Path

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"


@contextmanager
def ray_head(environment: Mapping[str, str], *, log: Path, cwd: Path | None = None) -> Iterator[RayHead]:
    """Start a head of two cores, and end it with everything that it started."""
    ports = {name: free_port() for name in _PORTS}
    session = Path("/tmp") / f"mf-{secrets.token_hex(4)}"  # sockets need a short path
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += ["--disable-usage-stats", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--temp-dir={session}", "--object-store-memory=134217728"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=cwd, env=dict(environment), stdout=file, stderr=file)
    try:
        _wait_for(ports["dashboard-port"], process, log)
        yield RayHead(ports["port"], ports["dashboard-port"], ports["metrics-export-port"], session)
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        psutil.wait_procs(below, timeout=15)
        for left in below:
            if left.is_running():
                left.kill()
        process.wait(20)
        shutil.rmtree(session, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _STARTING_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"Ray's dashboard did not start: {log.read_text()[-2000:]}")
