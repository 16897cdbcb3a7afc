"""Reads and writes objects with obstore, a client in Rust from the extra `fast`. It works without the interpreter lock.

With many small objects s3fs spends most of its time under that lock, which the threads feeding the device need too. If
obstore does not succeed, the caller asks s3fs again: only s3fs retries and reports errors.
"""

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import InvalidPathError, PreconditionError
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, S3Credential

T = TypeVar("T")

_FAILURES = 3
"""Failures in a row before a pause."""

_PAUSE_SECONDS = 60.0
"""Length of that pause: all requests go to s3fs."""

_CREDENTIALS_SECONDS = 60.0
"""Interval of asking for credentials again. The provider knows when they really expire."""

_process: int | None = None
"""Process in which obstore's threads run.

A forked process inherits their epoll without them. A request there would never return, and the parent, woken for it,
would follow a pointer of the child's memory.
"""


class Access(NamedTuple):
    """Access to a bucket.

    Attributes:
        bucket: Name of the bucket.
        endpoint: URL of the server.
        region: Region in the signatures.
        credentials: Returns key, secret and token; None to sign nothing.
        seconds: Time limit of a request.
        authorities: File of certificates that are trusted too, or None.
        requester_pays: Whether the caller agrees to pay for the requests.
    """

    bucket: str
    endpoint: str
    region: str
    credentials: Callable[[], tuple[str, str, str | None]] | None
    seconds: float = 120.0
    authorities: str | None = None
    requester_pays: bool = False


class ObstoreClient:
    """Client of one bucket, without retries. Safe from several threads.

    Args:
        access: Access to the bucket.
    """

    def __init__(self, access: Access) -> None:
        host = urlsplit(access.endpoint)
        # AWS wants the bucket in the host name. Its certificate covers only names without a dot.
        named = ".amazonaws.com" in host.netloc and "." not in access.bucket
        self._store = S3Store(
            access.bucket,
            endpoint=f"{host.scheme}://{access.bucket}.{host.netloc}" if named else access.endpoint,
            virtual_hosted_style_request=named,
            region=access.region,
            skip_signature=access.credentials is None,
            request_payer=access.requester_pays,
            credential_provider=None if access.credentials is None else partial(_credential, access.credentials),
            client_options=_client_options(access),
            retry_config={"max_retries": 0},
        )
        self._lock = threading.Lock()
        self._failures, self._not_before = 0, 0.0

    def read(self, key: str, etag: str | None = None, span: tuple[int, int] | None = None) -> bytes | None:
        """Return an object's bytes.

        Args:
            key: Full key, with the prefix.
            etag: ETag that the object must have, or None for any.
            span: Offset of the first byte and offset after the last; None for the whole object.

        Returns:
            The bytes, or None if the object is missing, has another ETag, the request failed, or obstore's threads
            run in a process of which this one is a fork.
        """
        options: GetOptions = {}
        if etag:
            options["if_match"] = f'"{etag}"'
        if span:
            options["range"] = span
        return self._asked(key, lambda: obstore.get(self._store, key, options=options).bytes().to_bytes())

    def write(self, key: str, data: bytes) -> bool:
        """Write an object, replacing an existing one. Return whether it is known to have succeeded."""
        return self._asked(key, lambda: obstore.put(self._store, key, data, use_multipart=False)) is not None

    def _asked(self, key: str, request: Callable[[], T]) -> T | None:
        # obstore strips slashes at the ends of a key, which would name another object.
        if key.strip("/") != key or self._not_before > time.monotonic() or not _has_threads():
            return None
        try:
            answer = request()
        except (FileNotFoundError, PreconditionError, InvalidPathError):  # obstore refuses keys like a//b
            return None
        except Exception:  # s3fs will report the reason
            self._failed()
            return None
        self._failures = 0
        return answer

    def _failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= _FAILURES:
                self._failures, self._not_before = 0, time.monotonic() + _PAUSE_SECONDS


def _has_threads() -> bool:
    """Return whether obstore's threads run in this process, or can be started in it."""
    global _process  # noqa: PLW0603  (obstore has one set of threads for a process)
    if _process is None:
        _process = os.getpid()
    return _process == os.getpid()


def _client_options(access: Access) -> "ClientConfig":
    options: ClientConfig = {
        "allow_http": access.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=30),
        "timeout": timedelta(seconds=access.seconds),
    }
    if access.authorities is not None:
        options["root_certificate"] = Path(access.authorities).read_bytes()
    return options


def _credential(credentials: Callable[[], tuple[str, str, str | None]]) -> "S3Credential":
    key, secret, token = credentials()
    return {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": token,
        "expires_at": datetime.now(UTC) + timedelta(seconds=_CREDENTIALS_SECONDS),
    }
