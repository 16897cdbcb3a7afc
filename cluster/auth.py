"""Client authentication to a Ray cluster, and the question whether a cluster takes this client.

The question is asked in a process of its own, since Ray can hang or end its process: `python -m maskfleet.cluster.auth
ADDRESS` prints one JSON object. Ray reads its settings of authentication once, when it is imported.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

_SECONDS = 25
_TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


REFUSED = 3
"""Exit code of this program for a missing or wrong token."""

NO_HEAD = 4
"""Its exit code if what listens there is no head of a cluster."""


def settle() -> None:
    """Make Ray send this user's token if there is one. Call this before importing Ray.

    Ray's server finds a token file automatically and then demands the token from every client, but a client sends one
    only if RAY_AUTH_MODE is set.
    """
    default = Path.home() / ".ray" / "auth_token"
    if default.is_file() and default.stat().st_uid == os.getuid() and default.stat().st_mode & 0o077:
        default.chmod(0o600)  # Ray makes it readable by every user of the machine
    if "RAY_AUTH_MODE" in os.environ:
        return
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or default.is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


def asked(address: str, *, with_token: bool) -> dict[str, Any] | None:
    """Return the answer of a cluster; None if it does not answer, or refuses this client.

    Args:
        address: HOST:PORT of its head, or "auto".
        with_token: Whether to send this user's token, if there is one.

    Returns:
        `ray`, `python` and `dashboard`: the versions of the cluster, and HOST:PORT of its dashboard or None.
    """
    return _asked(address, with_token=with_token)[1]


def refusal_of(address: str) -> Literal["token", "no head"] | None:
    """Return why a cluster does not take this client: its token, or there is no head of a cluster.

    None if it does take it, or if nothing is known: on a busy machine the question may take too long.
    """
    code, _ = _asked(address, with_token=True)
    return "token" if code == REFUSED else "no head" if code == NO_HEAD else None


def _asked(address: str, *, with_token: bool) -> tuple[int | None, dict[str, Any] | None]:
    """Return the exit code of this program, None if it hung, and its answer."""
    environment = {name: value for name, value in os.environ.items() if with_token or name not in _TOKENS}
    if not with_token:
        environment["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-P", "-m", "maskfleet.cluster.auth", address]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        return None, None
    try:
        return done.returncode, json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return done.returncode, None


def main() -> None:
    """Print the answer of the cluster named by the first argument."""
    if os.environ.get("RAY_AUTH_MODE") != "disabled":
        settle()
    from ray._private import ray_constants, services
    from ray.exceptions import AuthenticationError, RayError

    gcs: Any = importlib.import_module("ray._raylet")  # compiled, without types
    try:
        client = gcs.GcsClient(address=services.canonicalize_bootstrap_address_or_die(sys.argv[1]))
    except AuthenticationError:
        sys.exit(REFUSED)
    except RayError:
        sys.exit(NO_HEAD)
    about = client.internal_kv_get(b"CLUSTER_METADATA", namespace=ray_constants.KV_NAMESPACE_CLUSTER)
    dashboard = client.internal_kv_get(b"dashboard", namespace=ray_constants.KV_NAMESPACE_DASHBOARD)
    versions = json.loads(about)
    answer = {
        "ray": versions["ray_version"],
        "python": versions["python_version"],
        "dashboard": dashboard.decode() if dashboard else None,
    }
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)  # Ray's threads need no farewell


if __name__ == "__main__":
    main()
