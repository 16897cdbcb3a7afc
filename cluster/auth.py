"""Client authentication to a Ray cluster. Ray reads these settings once, when it is imported."""

import os
from pathlib import Path


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
