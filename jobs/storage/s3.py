"""A bucket as storage: s3fs with its caches and retries off, and one retry loop here.

Retries in three layers would multiply to over a hundred attempts and half an hour per call. If obstore is installed,
it is tried first for reads and writes.
"""

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import Changed, JobError, NotFound, StorageError
from maskfleet.jobs.storage.contract import ENVIRONMENT, OBJECTS, Entry, Fault, Options, Storage, Unlisted
from maskfleet.jobs.storage.list_objects_xml import EVENT, Page, take_body
from maskfleet.jobs.storage.ranged import copied
from maskfleet.jobs.storage.s3_errors import (
    code_of,
    final_error,
    is_expired,
    misdirected,
    reason,
    refuses_condition,
    unreachable,
)
from maskfleet.jobs.storage.s3_listing import ranged_pages

if TYPE_CHECKING:
    from maskfleet.jobs.storage.obstore_client import ObstoreClient

T = TypeVar("T")

_TLS_SECONDS = 1.0
"""Time for asking once whether a server that does not answer as S3 speaks TLS."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables with the server's URL, the first one set."""

_KEY_BYTES = 1024
"""Longest key of an object in UTF-8, with its prefix."""


class S3Storage(Storage):
    """A bucket, or a prefix in one. Each process gets credentials from the AWS provider chain itself.

    Args:
        root: URL, `s3://bucket` or `s3://bucket/prefix`.
        options: How the bucket is asked.

    Attributes:
        GET_SECONDS: Time limit of a read with all its retries.
        PUT_SECONDS: Time limit of a write with all its retries.
        IN_FLIGHT: Size of the connection pool.
        PART: Bytes per request, for objects copied to disk.
    """

    GET_SECONDS = 120.0
    PUT_SECONDS = 300.0
    IN_FLIGHT = 64
    PART = 64 * 2**20

    def __init__(self, root: str, options: Options = ENVIRONMENT) -> None:
        self.root = root.rstrip("/")
        self.bucket, _, self.prefix = root.removeprefix("s3://").strip("/").partition("/")
        self.options = options
        self._fs: Any = None
        self._obstore: ObstoreClient | None = None
        self._obstore_is_open = False
        self._opening = threading.Lock()
        if not self.bucket:
            raise JobError(f"{root} names no bucket; write s3://bucket/prefix")
        if self.bucket.startswith("arn:"):
            raise JobError(f"{root} is an access point's ARN; write its alias, s3://…-s3alias/prefix")

    @classmethod
    def open(cls, url: str, options: Options) -> Self:
        return cls(url, options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the file system: pickled, it would carry the secret key.
        return type(self), (self.root, self.options)

    def read(self, path: str, etag: str | None = None) -> bytes:
        return self._read(path, etag, None)

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        return self._read(path, etag, (start, start + length))

    def _read(self, path: str, etag: str | None, span: tuple[int, int] | None) -> bytes:
        end = time.monotonic() + self.GET_SECONDS
        obstore = self._opened_obstore()
        if obstore is not None and (data := obstore.read(self._key(path), etag, span)) is not None:
            return data
        more = {"IfMatch": f'"{etag}"'} if etag else {}
        if span:
            more["Range"] = f"bytes={span[0]}-{span[1] - 1}"

        async def get() -> bytes:
            answer = await self._call("get_object", path, **more)
            return bytes(await answer["Body"].read())

        return self._retried(get, path, self.GET_SECONDS, end=end, reads=True)

    def _opened_obstore(self) -> "ObstoreClient | None":
        if not self._obstore_is_open:
            with self._opening:
                if not self._obstore_is_open:
                    self._obstore = self._made_obstore()
                    self._obstore_is_open = True
        return self._obstore

    def _made_obstore(self) -> "ObstoreClient | None":
        """Return a client of the server, region and credentials found by s3fs; None if obstore is not installed."""

        def asked(request: Callable[[], Coroutine[Any, Any, T]]) -> T:
            loop = self._filesystem().loop
            return asyncio.run_coroutine_threadsafe(request(), loop).result(self.GET_SECONDS)

        async def credentials() -> tuple[str, str, str | None]:
            found = await (await self._filesystem().session.get_credentials()).get_frozen_credentials()
            return found.access_key, found.secret_key, found.token

        try:
            from maskfleet.jobs.storage.obstore_client import Access, ObstoreClient

            client = asked(self._filesystem().set_session).meta
            if not self.options.anonymous:
                asked(credentials)
            access = Access(
                self.bucket, client.endpoint_url, client.region_name,
                None if self.options.anonymous else lambda: asked(credentials),
                seconds=self.GET_SECONDS, authorities=self._filesystem().session.get_config_variable("ca_bundle"),
                requester_pays=self.options.requester_pays,
            )  # fmt: skip
            return ObstoreClient(access)
        except Exception:  # not installed, or s3fs will report the reason
            return None

    @contextmanager
    def opened(self, path: str, etag: str | None = None) -> Iterator[BinaryIO]:
        starts = range(0, self.entry(path).size, self.PART)
        with copied(self.read_range(path, start, self.PART, etag) for start in starts) as file:
            yield file

    def write(self, path: str, data: bytes) -> None:
        end = time.monotonic() + self.PUT_SECONDS
        obstore = self._opened_obstore()
        if obstore is not None and obstore.write(self._key(path), data):
            return
        self._retried(lambda: self._call("put_object", path, Body=data), path, self.PUT_SECONDS, end=end)

    def create(self, path: str, data: bytes) -> bool:
        if self.conditional:
            try:
                self._retried(
                    lambda: self._call("put_object", path, Body=data, IfNoneMatch="*"), path, self.PUT_SECONDS
                )
                return True
            except Changed:
                return False
            except StorageError as error:
                if not refuses_condition(error):
                    raise
                self.conditional = False
        if self.exists(path):
            return False
        self.write(path, data)
        return True

    def check_reachable(self) -> None:
        # A server of the profile's configuration, and AWS itself, are not asked: finding their address takes seconds.
        endpoint = self.options.endpoint or next(filter(None, map(os.environ.get, _ENDPOINTS)), None)
        if endpoint is not None and (error := unreachable(self.root, endpoint)):
            raise error

    def refused(self, path: str) -> str | None:
        length = len(self._key(path).encode())
        return f"its key has {length} bytes, and S3 allows {_KEY_BYTES}" if length > _KEY_BYTES else None

    def delete(self, path: str) -> None:
        with suppress(NotFound):
            self._retried(lambda: self._call("delete_object", path), path, self.PUT_SECONDS)

    def listed(self, path: str = "", *, unlisted: Unlisted | None = None) -> Iterator[pa.Table]:
        skip = len(self.prefix) + 1 if self.prefix else 0
        folder = self._key(path).rstrip("/")
        for page in ranged_pages(lambda more: self._pages(path, more), f"{folder}/" if folder else ""):
            # Without the empty objects that some tools create for folders.
            objects = page.objects.filter(pc.invert(pc.ends_with(page.objects["path"], "/")))
            yield objects.set_column(0, OBJECTS.field("path"), pc.utf8_slice_codeunits(objects["path"], skip))

    def names(self, path: str) -> list[str]:
        found: set[str] = set()
        for page in self._pages(path, {"Delimiter": "/"}):
            found |= {folder.rstrip("/").rsplit("/", 1)[-1] for folder in page.folders}
            found |= {key.rsplit("/", 1)[-1] for key in page.objects["path"].to_pylist()}
        return sorted(found - {""})

    def _pages(self, path: str, more: dict[str, Any]) -> Iterator[Page]:
        folder = self._key(path).rstrip("/")
        arguments = {"Prefix": f"{folder}/" if folder else "", **more}
        while True:
            answer = self._retried(lambda: self._call("list_objects_v2", None, **arguments), path, self.GET_SECONDS)
            if "Page" not in answer:
                raise StorageError(f"{self.url(path)}: the server is not an S3 server; correct AWS_ENDPOINT_URL_S3")
            page: Page = answer["Page"]
            yield page
            if page.more is None:
                return
            arguments["ContinuationToken"] = page.more

    def entry(self, path: str) -> Entry:
        try:
            head = self._head(path)
        except Fault:
            head = None
        if head is None:  # an answer to HEAD has no body with the reason: GET raises it, or renews the credentials
            self.read_range(path, 0, 1)
            head = self._head(path)
        return Entry(path, head["ContentLength"], head["ETag"].strip('"'), head["LastModified"].timestamp())

    def _head(self, path: str) -> Any:
        return self._retried(lambda: self._call("head_object", path), path, self.GET_SECONDS, reads=True)

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _call(self, method: str, path: str | None, **arguments: Any) -> Coroutine[Any, Any, Any]:
        key = {} if path is None else {"Key": self._key(path)}
        call: Coroutine[Any, Any, Any] = self._filesystem()._call_s3(method, Bucket=self.bucket, **key, **arguments)
        return call

    def _filesystem(self) -> Any:
        if self._fs is None or self._fs._pid != os.getpid():  # s3fs refuses to serve a forked process
            # Imported late: a job on local folders must not pay for the AWS libraries.
            import s3fs
            from aiobotocore.session import AioSession

            session = AioSession(profile=self.options.profile)
            session.register(EVENT, take_body)
            self._fs = s3fs.S3FileSystem(
                session=session,
                endpoint_url=self.options.endpoint,
                anon=self.options.anonymous,
                requester_pays=self.options.requester_pays,
                skip_instance_cache=True,
                use_listings_cache=False,
                max_concurrency=1,
                config_kwargs={
                    "max_pool_connections": self.IN_FLIGHT,
                    "connect_timeout": 5,
                    "read_timeout": 30,
                    "retries": {"mode": "standard", "total_max_attempts": 1},
                    **_checksums(session),
                },
            )
            self._fs.retries = 1
        return self._fs

    def _retried(
        self, request: Callable[[], Coroutine[Any, Any, T]], path: str, seconds: float, *, end: float | None = None,
        reads: bool = False,
    ) -> T:  # fmt: skip
        """Return the answer to a request, retried with full jitter for up to `seconds` in total.

        Args:
            request: Makes the request.
            path: Path of the object, for errors.
            seconds: Time limit, for errors.
            end: Its end by the monotonic clock; None for `seconds` from now.
            reads: Whether the request reads one object.
        """
        end = time.monotonic() + seconds if end is None else end
        renewed = False
        for attempt in itertools.count():
            try:
                filesystem = self._filesystem()
                future = asyncio.run_coroutine_threadsafe(_awaited(request), filesystem.loop)
                try:
                    return future.result(max(0.1, end - time.monotonic()))
                except FutureTimeoutError:
                    future.cancel()
                    raise
            except Exception as error:  # each library below raises its own types
                verdict = final_error(error, self.url(path), reads=reads)
                expired = is_expired(error) and not renewed
                if attempt == 0 and code_of(error) in {None, "400"}:
                    verdict = self._misdirected(path, end - time.monotonic()) or verdict
                if verdict is not None and not expired:
                    raise verdict from error
                pause = random.uniform(0, min(20.0, 0.1 * 2**attempt))
                if time.monotonic() + pause >= end:
                    raise StorageError(
                        f"{self.url(path)}: storage failed for {seconds:.0f} s ({reason(error)}); "
                        "run the same command again once it is back"
                    ) from error
                if expired:
                    renewed, self._fs, self._obstore_is_open = True, None, False
                self.retries += 1
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _misdirected(self, path: str, seconds: float) -> StorageError | None:
        client = getattr(self._fs, "_s3", None)
        if client is None or seconds <= _TLS_SECONDS:
            return None
        return misdirected(self.url(path), client.meta.endpoint_url, seconds=_TLS_SECONDS)


def _checksums(session: Any) -> dict[str, str]:
    """Return the settings of checksums: the user's, else none beyond what S3 requires.

    botocore's default sends a checksum behind the body, which many servers refuse over TLS.
    """
    try:
        said = session.get_scoped_config()
    except Exception:  # no such profile: the first request reports it
        said = {}
    names = ("request_checksum_calculation", "response_checksum_validation")
    return {name: "when_required" for name in names if name not in said and f"AWS_{name.upper()}" not in os.environ}


async def _awaited(request: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await request()
