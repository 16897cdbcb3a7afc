"""The way to a Ray: one of our own on this machine, or a cluster's."""

import atexit
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from jobs.errors import MaskfleetError


class ClusterError(MaskfleetError):
    """There is no such cluster, or it cannot run the workers; the message says what to check."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to Ray; a Ray of one's own is ended behind it.

    Args:
        address: Of a cluster; None for RAY_ADDRESS, else a Ray of one's own.

    Raises:
        ClusterError: There is none at that address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _own_token()
        own = {"include_dashboard": False, "object_store_memory": 128 * 2**20}
    try:
        _check_reachable(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            f"no Ray at {address}: {str(error).strip().splitlines()[0]}; check --address and RAY_ADDRESS, "
            "or run with --no-ray"
        ) from error
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray puts its own there, which would end the run without draining
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fail in seconds where nobody listens: Ray itself asks for minutes, and then ends the process."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _own_token() -> None:
    """A token of its own for a local Ray: the one that Ray would write is readable by every user of the machine."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if any(name in os.environ for name in names) or (Path.home() / ".ray" / "auth_token").exists():
        return
    folder = Path(tempfile.mkdtemp(prefix="maskfleet-"))  # open to this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "token").write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
