"""Checks of Ray: whether the cluster answers, who may use it, and room for a local Ray."""

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from maskfleet.cluster import auth
from maskfleet.cluster.auth import asked
from maskfleet.cluster.sizing import OBJECT_STORE_BYTES
from maskfleet.cluster.submit import Submissions
from maskfleet.jobs.tools.doctor.contract import Finding, Subject

_LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (only its size is read)
_OPEN = (
    "start the cluster with RAY_AUTH_MODE=token, in a private network: whoever reaches its ports owns the "
    "credentials of its workers (docs/cluster.md)"
)


def cluster(subject: Subject) -> Finding:
    """Ask the cluster, or say that a run starts a local Ray."""
    address, ours = _address(subject), f"Ray {version('ray')}"
    if address is None:
        return Finding("ok", f"{ours}; no cluster is named, so a run starts a local Ray")
    if address.startswith(("http://", "https://")):
        Submissions(address).list()
        return Finding("ok", f"{ours}; the dashboard at {address} answers")
    answer = asked(address, with_token=True)
    if answer is None:
        return Finding(
            "problem",
            f"{ours}; no Ray cluster answers this client at {address}",
            "check --address and RAY_ADDRESS (HOST:PORT of the head), the network, and the token (RAY_AUTH_TOKEN_PATH)",
        )
    here = {"ray": version("ray"), "python": platform.python_version()}
    if other := [f"{name} {answer[name]} there and {here[name]} here" for name in here if answer[name] != here[name]]:
        return Finding("problem", f"{address} answers: {', '.join(other)}", "use the same versions on every machine")
    return Finding("ok", f"{ours}; {address} answers, with the same Ray and Python")


def access(subject: Subject) -> Finding | None:
    """Find out whether the cluster demands a token, and where its dashboard listens."""
    address = _address(subject)
    if address is None:
        return local_access(os.environ)
    found = _dashboard_access(address) if address.startswith(("http://", "https://")) else _head_access(address)
    if found is None:  # `cluster` says so
        return None
    is_open, dashboard = found
    place = f"the dashboard listens on {dashboard}" if dashboard else "it has no dashboard"
    if not is_open:
        return Finding("ok", f"{address} takes no request without a token; {place}")
    is_public = bool(dashboard) and str(dashboard).rpartition(":")[0] not in _LOCAL
    return Finding("problem" if is_public else "warning", f"{address} takes requests without a token; {place}", _OPEN)


def _dashboard_access(address: str) -> tuple[bool, str | None] | None:
    """Return whether a dashboard takes a request without a token, and its own host and port; None without an answer."""
    import requests

    try:
        is_open = requests.get(f"{address.rstrip('/')}/api/version", timeout=10).ok
    except requests.RequestException:
        return None
    return is_open, urlsplit(address).netloc


def _head_access(address: str) -> tuple[bool, str | None] | None:
    """Return the same of a head, with the host and port of its dashboard."""
    without = asked(address, with_token=False)
    answer = without or asked(address, with_token=True)
    return None if answer is None else (without is not None, answer["dashboard"])


def local_access(environment: Mapping[str, str]) -> Finding:
    """Find the token of a local Ray.

    Args:
        environment: Environment variables.
    """
    auth.settle()
    if environment.get("RAY_AUTH_MODE") == "disabled":
        text = "RAY_AUTH_MODE=disabled: every user of this machine can use a local Ray, and its credentials"
        return Finding("warning", text, "unset RAY_AUTH_MODE: a local Ray then gets a token of its own")
    if path := environment.get("RAY_AUTH_TOKEN_PATH"):
        file = Path(path)
        if not file.is_file():
            return Finding("problem", f"RAY_AUTH_TOKEN_PATH: there is no file {path}", "write the token, or unset it")
        if file.stat().st_mode & 0o077:
            return Finding("warning", f"the token in {path} is readable by other users", f"chmod 600 {path}")
    source = next((name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if environment.get(name)), None)
    if source is None and (Path.home() / ".ray" / "auth_token").is_file():
        source = "~/.ray/auth_token"
    token = f"the token of {source}" if source else "a token of its own"
    return Finding("ok", f"a local Ray has {token} and no dashboard")


def shared_memory(subject: Subject) -> Finding | None:
    """Find the size of /dev/shm, which holds Ray's object store. Decoding processes share memory without it."""
    if not _SHARED_MEMORY.is_dir():
        return None
    free = shutil.disk_usage(_SHARED_MEMORY).free
    text = f"{free / 2**20:.0f} MiB free in /dev/shm; a local Ray takes {OBJECT_STORE_BYTES / 2**20:.0f} MiB"
    if free < OBJECT_STORE_BYTES:
        return Finding("warning", text, "start the container with --shm-size=256m; Ray takes a folder on disk instead")
    return Finding("ok", text)


def _address(subject: Subject) -> str | None:
    address = subject.address or os.environ.get("RAY_ADDRESS")
    return None if not address or address == "local" else address
