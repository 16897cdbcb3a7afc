"""Objects by obstore, of the extra `fast`: a client in Rust, which moves them without Python's lock.

Of many small objects that lock is what s3fs takes most of, and the threads that feed the device want it too. What
obstore does not do is asked of s3fs again, by the caller: that one alone retries, and says why there is no answer.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import InvalidPathError, PreconditionError
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Credential

T = TypeVar("T")

_FAILURES = 3
"""In a row, after which it is left alone for a while,"""

_PAUSE_SECONDS = 60.0
"""this long."""

_CREDENTIALS_SECONDS = 60.0
"""They are asked for again; who provides them knows when they really end."""


class Access(NamedTuple):
    """How a bucket is reached.

    Attributes:
        bucket: Its name.
        endpoint: URL of its server.
        region: That requests are signed for.
        credentials: Gives key, secret and token.
    """

    bucket: str
    endpoint: str
    region: str
    credentials: Callable[[], tuple[str, str, str | None]]


class ObstoreClient:
    """Gets and puts objects of a bucket. Safe from several threads.

    Args:
        access: How it is reached.
    """

    def __init__(self, access: Access) -> None:
        host = urlsplit(access.endpoint)
        # Amazon wants the bucket in the host's name, which a certificate covers where it has no dot.
        named = ".amazonaws.com" in host.netloc and "." not in access.bucket
        self._store = S3Store(
            access.bucket,
            endpoint=f"{host.scheme}://{access.bucket}.{host.netloc}" if named else access.endpoint,
            virtual_hosted_style_request=named,
            region=access.region,
            credential_provider=lambda: _credential(access),
            client_options={
                "allow_http": host.scheme == "http",
                "connect_timeout": "5s",
                "read_timeout": "30s",
                "timeout": "120s",
            },
            retry_config={"max_retries": 0},
        )
        self._lock = threading.Lock()
        self._failures, self._not_before = 0, 0.0

    def read(self, key: str, etag: str | None = None, span: tuple[int, int] | None = None) -> bytes | None:
        """An object's bytes, or those from the first to before the second number of `span`.

        Args:
            key: Whole, with the prefix.
            etag: What it must have; None for any.
            span: A piece.

        Returns:
            None where it is not there, not as wanted, or not to be had by this client.
        """
        options: GetOptions = {}
        if etag:
            options["if_match"] = f'"{etag}"'
        if span:
            options["range"] = span
        return self._asked(key, lambda: obstore.get(self._store, key, options=options).bytes().to_bytes())

    def write(self, key: str, data: bytes) -> bool:
        """Put an object there, over what may be there; whether it is known to be there now."""
        return self._asked(key, lambda: obstore.put(self._store, key, data, use_multipart=False)) is not None

    def _asked(self, key: str, request: Callable[[], T]) -> T | None:
        # It would name another object: slashes at the ends of a key are nothing to it.
        if key.strip("/") != key or self._not_before > time.monotonic():
            return None
        try:
            answer = request()
        except (FileNotFoundError, PreconditionError, InvalidPathError):  # keys like a//b are none for it
            return None
        except Exception:  # no answer; whatever the reason, s3fs will name it
            self._failed()
            return None
        self._failures = 0
        return answer

    def _failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= _FAILURES:
                self._failures, self._not_before = 0, time.monotonic() + _PAUSE_SECONDS


def _credential(access: Access) -> "S3Credential":
    key, secret, token = access.credentials()
    return {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": token,
        "expires_at": datetime.now(UTC) + timedelta(seconds=_CREDENTIALS_SECONDS),
    }
