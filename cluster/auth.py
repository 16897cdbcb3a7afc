"""How a client says who it is to a Ray cluster. Must be settled before Ray is imported, which reads it once."""

import os
from pathlib import Path


def settle() -> None:
    """Use a token where there is one.

    Ray's own server finds a token file by itself and then asks every client for it, while its clients
    send none until RAY_AUTH_MODE tells them to.
    """
    default = Path.home() / ".ray" / "auth_token"
    if default.is_file() and default.stat().st_uid == os.getuid() and default.stat().st_mode & 0o077:
        default.chmod(0o600)  # Ray writes it for every user of the machine to read
    if "RAY_AUTH_MODE" in os.environ:
        return
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or default.is_file():
        os.environ["RAY_AUTH_MODE"] = "token"
