"""The door to files and buckets. Two kinds, one contract: `LocalStorage` and `S3Storage`.

Decoding processes, which have no other business with storage, do without: they read local files by
`jobs.storage.local_file`.
"""

import os

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.storage.contract import Entry, Storage
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.s3 import S3Storage

__all__ = ["Entry", "LocalStorage", "S3Storage", "Storage", "open_storage", "split_url"]


def open_storage(url: str, *, profile: str | None = None) -> Storage:
    """The storage at a URL or local path. Makes no request.

    Raises:
        JobError: It is neither local nor s3://.
    """
    if url.startswith("s3://"):
        return S3Storage(url, profile=profile)
    if "://" in url and not url.startswith("file://"):
        raise JobError(f"{url}: storage must be a local path or s3://")
    return LocalStorage(url.removeprefix("file://"))


def split_url(url: str) -> tuple[str, str]:
    """Root and path of an object's URL: bucket and key, or the file system's root and the rest."""
    if url.startswith("s3://"):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", key
    if "://" in url and not url.startswith("file://"):
        raise JobError(f"{url}: storage must be a local path or s3://")
    return "/", os.path.abspath(url.removeprefix("file://")).lstrip("/")
