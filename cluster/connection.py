"""The connection to Ray: a cluster, or a local Ray that ends with the run."""

import atexit
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from maskfleet.cluster.auth import refusal_of
from maskfleet.cluster.sizing import OBJECT_STORE_BYTES
from maskfleet.jobs.cores import PATIENT_THREADS
from maskfleet.jobs.errors import MaskfleetError

WORKER_ENVIRONMENT = {
    # An environment variable, since Ray's threads allocate before our code runs; see `unet.memory.keep_freed_memory`.
    "MALLOC_ARENA_MAX": "1",
    **PATIENT_THREADS,
}
"""Environment variables of every worker."""


_CONNECT_SECONDS = 5


class ClusterError(MaskfleetError):
    """The cluster cannot be reached or cannot run the workers. The message states what to check."""


class _NoFolders(list[str]):
    """A list that stays empty."""

    def extend(self, folders: Iterable[str]) -> None:
        """Ignore the folders."""


def _no_search_path() -> JobConfig:
    """Return a job configuration keeping the driver's working directory off the workers' module search path.

    A user's `unet/` or `numpy.py` in it must not replace the real module. `ray.init` adds the folder to this list, and
    Ray's public interface prevents that only with a `working_dir`, which would give up Ray's prestarted workers.
    """
    config = JobConfig()
    config._py_driver_sys_path = _NoFolders()
    return config


@contextmanager
def connected(address: str | None, environment: Mapping[str, str]) -> Iterator[dict[str, Any] | None]:
    """Connect to Ray. A local Ray ends with the context.

    Args:
        address: Address of a cluster; None for RAY_ADDRESS, else a local Ray.
        environment: Environment variables of the workers.

    Yields:
        The runtime environment with those variables; None if inherited. A local Ray inherits them and can then use its
        prestarted workers instead of creating an environment and a process per worker (measured: 0.3 s instead of
        1.6 s until the first line of an actor runs).

    Raises:
        ClusterError: There is no Ray at that address, it refuses this client, or a local Ray does not start.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _own_token()
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _check_address(address)
    try:
        with _environment(environment if own else {}):
            # Not even errors are logged: the exception says the same, and is explained.
            ray.init(
                address, log_to_driver=False, logging_level=logging.CRITICAL, job_config=_no_search_path(), **own
            )  # fmt: skip
    except Exception as error:  # Ray raises plain exceptions too
        if own:
            raise ClusterError(
                "a local Ray did not start on this machine; look for the cause with maskfleet doctor (memory, "
                "/dev/shm, disk), or run with --no-ray"
            ) from error
        raise ClusterError(
            f"the Ray cluster at {address} answers but takes no driver from this machine; use the same versions of Ray "
            "and Python on both (maskfleet doctor shows them), or use maskfleet submit"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray's own handlers would end the run without draining it
        yield None if own else {"env_vars": dict(environment)}
    finally:
        ray.shutdown()


class Connection:
    """A connection to Ray, made on first use or ahead of it. A reusable context manager.

    Args:
        address: Address of a cluster; see `connected`.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self._thread = ThreadPoolExecutor(1, "connection")
        self._ahead: Future[dict[str, Any] | None] | None = None
        self._open = ExitStack()

    def begin(self) -> None:
        """Start connecting in another thread.

        A local Ray takes seconds to start: time to load torch, check the weights and list the input.
        """
        self._ahead = self._thread.submit(self._connect)

    def _connect(self) -> dict[str, Any] | None:
        return self._open.enter_context(connected(self.address, WORKER_ENVIRONMENT))

    def __enter__(self) -> dict[str, Any] | None:
        """Connect, or wait for the connection started by `begin`. See `connected`."""
        return self._connect() if self._ahead is None else self._ahead.result()

    def __exit__(self, *_: object) -> None:
        self._ahead = None
        self._open.close()

    def close(self, *, wait: bool = True) -> None:
        """End a connection started by `begin` and never used, ignoring its errors.

        Args:
            wait: Whether to wait for a connection still being made. Otherwise it ends with this process.
        """
        if self._ahead is not None and (wait or self._ahead.done()):
            futures.wait([self._ahead])
            self.__exit__()
        if wait:
            # Last: Ray's processes die with the thread that started them (PR_SET_PDEATHSIG), and `ray.shutdown` would
            # then wait 15 s for them in vain.
            self._thread.shutdown()


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in more if name in before})


def _check_address(address: str) -> None:
    """Fail within seconds if no cluster answers this client. Ray itself retries for minutes, with a warning a second.

    Raises:
        ClusterError: The message says which part is wrong.
    """
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{address} is a dashboard; give HOST:PORT of the head, such as 10.0.0.5:6379, or use maskfleet submit"
        )
    host, colon, port = address.rpartition(":")
    if address != "auto":
        if not (colon and host and port.isdigit()) or "/" in address:
            raise ClusterError(f"{address!r} is no address of a Ray cluster; give HOST:PORT, such as 10.0.0.5:6379")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ClusterError(
                f"no Ray at {address}: nothing answers there; check --address and RAY_ADDRESS, or run with --no-ray"
            ) from error
    refusal = refusal_of(address)
    if refusal == "no head":
        raise ClusterError(
            f"no Ray at {address}: what listens there is no head of a cluster; check --address and RAY_ADDRESS (the "
            "port is usually 6379), or run with --no-ray"
        )
    if refusal == "token":
        raise ClusterError(
            f"Ray at {address} requires a token, and this client's is missing or wrong; set RAY_AUTH_TOKEN_PATH to a "
            "file (mode 0600) with the token of the cluster"
        )


def _own_token() -> None:
    """Give a local Ray its own token. Ray's own token file would be readable by every user of the machine."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if any(name in os.environ for name in names) or (Path.home() / ".ray" / "auth_token").exists():
        return
    folder = Path(tempfile.mkdtemp(prefix="maskfleet-"))  # readable by this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "token").write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
