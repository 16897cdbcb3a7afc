"""The one form of a place that has several: a local file as a URL, and S3 by another scheme."""

import os
from urllib.parse import unquote

_SAME_SCHEMES = {"s3a": "s3", "s3n": "s3"}
"""Hadoop's names for S3."""


def plain(url: str) -> str:
    """Return a URL in the form that storage uses: `file://` as an absolute path, `s3a://` as `s3://`.

    Raises:
        ValueError: A `file://` URL names another machine.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "file":
        return f"{_SAME_SCHEMES.get(scheme.lower(), scheme)}://{rest}"
    machine, slash, path = rest.partition("/")
    if machine.lower() not in ("", "localhost") or not slash:
        raise ValueError(f"names the machine {machine!r}; write file:///… or the path itself")
    return os.path.abspath("/" + unquote(path).lstrip("/"))
