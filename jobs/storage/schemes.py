"""Storage by URL. `SCHEMES` is the table of all kinds.

Decoding processes do not import this module: they read local files through `jobs.storage.local_file`, which loads
no library.
"""

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.storage.contract import Options, Storage
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.s3 import S3Storage

SCHEMES: dict[str, type[Storage]] = {
    "file": LocalStorage,
    "s3": S3Storage,
}
"""Kinds of storage by URL scheme. A path without a scheme is a local file."""


def open_storage(url: str, *, profile: str | None = None) -> Storage:
    """Return the storage at a URL or local path, with the environment's options. Makes no request.

    Raises:
        JobError: The URL has an unknown scheme.
    """
    return open_with(url, Options(profile))


def open_with(url: str, options: Options) -> Storage:
    """Return the storage at a URL or local path. Raises as `open_storage`."""
    return _kind(url).open(url, options)


def split_url(url: str) -> tuple[str, str]:
    """Split an object's URL into the root of its storage (a bucket, or `/`) and its path there.

    Raises:
        JobError: The URL has an unknown scheme.
    """
    return _kind(url).split(url)


def is_local(url: str) -> bool:
    """Return whether a URL names a file of this machine."""
    kind = SCHEMES.get(_scheme(url))
    if kind is None or not kind.is_local:
        return False
    if "://" in url:
        try:
            kind.split(url)
        except JobError:  # a file of another machine
            return False
    return True


def _kind(url: str) -> type[Storage]:
    kind = SCHEMES.get(_scheme(url))
    if kind is None:
        others = " or ".join(f"{name}://" for name in SCHEMES if name != "file")
        raise JobError(f"{url}: storage must be a local path or {others}")
    return kind


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return scheme if separator else "file"
