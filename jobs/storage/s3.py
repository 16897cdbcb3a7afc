"""A bucket as storage: s3fs with its caches and retries off, and one retry loop here.

Retries in three layers multiply to over a hundred attempts and half an hour per call. Where obstore is installed,
objects are read and written by it first.
"""

import asyncio
import itertools
import random
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import Changed, Denied, JobError, NotFound, StorageError
from maskfleet.jobs.storage.contract import Entry, Storage
from maskfleet.jobs.storage.list_objects_xml import EVENT, OBJECTS, Page, take_body
from maskfleet.jobs.storage.listing import ranged_pages

if TYPE_CHECKING:
    from maskfleet.jobs.storage.obstore_client import Quick

T = TypeVar("T")


class S3Storage(Storage):
    """A bucket, or a prefix of one. Credentials come from the AWS provider chain, at each process by itself."""

    GET_SECONDS = 120.0
    PUT_SECONDS = 300.0
    IN_FLIGHT = 64
    PART = 64 * 2**20

    def __init__(self, root: str, *, profile: str | None = None) -> None:
        self.root = root.rstrip("/")
        self.bucket, _, self.prefix = root.removeprefix("s3://").strip("/").partition("/")
        self.profile = profile
        self._fs: Any = None
        self._quick: Quick | None = None
        self._quick_is_open = False
        self._opening = threading.Lock()
        if not self.bucket:
            raise JobError(f"{root}: a bucket is missing; write s3://bucket/prefix")

    def __reduce__(self) -> tuple[Any, ...]:
        # Never the file system: pickled, it would carry the secret key.
        return _s3_storage, (self.root, self.profile)

    def read(self, path: str, etag: str | None = None) -> bytes:
        return self._read(path, etag, None)

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        return self._read(path, etag, (start, start + length))

    def _read(self, path: str, etag: str | None, span: tuple[int, int] | None) -> bytes:
        quick = self._opened_quick()
        if quick is not None and (data := quick.read(self._key(path), etag, span)) is not None:
            return data
        more = {"IfMatch": f'"{etag}"'} if etag else {}
        if span:
            more["Range"] = f"bytes={span[0]}-{span[1] - 1}"

        async def get() -> bytes:
            answer = await self._call("get_object", path, **more)
            return bytes(await answer["Body"].read())

        return self._retried(get, path, self.GET_SECONDS)

    def _opened_quick(self) -> "Quick | None":
        if not self._quick_is_open:
            with self._opening:
                if not self._quick_is_open:
                    self._quick = self._made_quick()
                    self._quick_is_open = True
        return self._quick

    def _made_quick(self) -> "Quick | None":
        """By the server, the region and the credentials that s3fs has found."""
        filesystem = self._filesystem()

        async def credentials() -> tuple[str, str, str | None]:
            found = await (await filesystem.session.get_credentials()).get_frozen_credentials()
            return found.access_key, found.secret_key, found.token

        def asked(request: Callable[[], Coroutine[Any, Any, T]]) -> T:
            return asyncio.run_coroutine_threadsafe(request(), filesystem.loop).result(self.GET_SECONDS)

        try:
            from maskfleet.jobs.storage.obstore_client import Access, Quick

            client = asked(filesystem.set_session).meta
            asked(credentials)
            return Quick(Access(self.bucket, client.endpoint_url, client.region_name, lambda: asked(credentials)))
        except Exception:  # not installed; or s3fs will say what is wrong
            return None

    @contextmanager
    def opened(self, path: str, etag: str | None = None) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:
            for start in range(0, self.entry(path).size, self.PART):
                file.write(self.read_range(path, start, self.PART, etag))
            file.seek(0)
            yield file

    def write(self, path: str, data: bytes) -> None:
        quick = self._opened_quick()
        if quick is not None and quick.write(self._key(path), data):
            return
        self._retried(lambda: self._call("put_object", path, Body=data), path, self.PUT_SECONDS)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._retried(lambda: self._call("put_object", path, Body=data, IfNoneMatch="*"), path, self.PUT_SECONDS)
        except Changed:
            return False
        return True

    def delete(self, path: str) -> None:
        with suppress(NotFound):
            self._retried(lambda: self._call("delete_object", path), path, self.PUT_SECONDS)

    def listed(self, path: str = "") -> Iterator[pa.Table]:
        skip = len(self.prefix) + 1 if self.prefix else 0
        folder = self._key(path).rstrip("/")
        for page in ranged_pages(lambda more: self._pages(path, more), f"{folder}/" if folder else ""):
            # Not the empty objects that stand for folders in some tools.
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
                raise StorageError(f"{self.url(path)}: what answers is no S3 server; correct AWS_ENDPOINT_URL_S3")
            page: Page = answer["Page"]
            yield page
            if page.more is None:
                return
            arguments["ContinuationToken"] = page.more

    def entry(self, path: str) -> Entry:
        head = self._retried(lambda: self._call("head_object", path), path, self.GET_SECONDS)
        return Entry(path, head["ContentLength"], head["ETag"].strip('"'), head["LastModified"].timestamp())

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _call(self, method: str, path: str | None, **arguments: Any) -> Coroutine[Any, Any, Any]:
        key = {} if path is None else {"Key": self._key(path)}
        call: Coroutine[Any, Any, Any] = self._filesystem()._call_s3(method, Bucket=self.bucket, **key, **arguments)
        return call

    def _filesystem(self) -> Any:
        if self._fs is None:
            # Imported here: listing a local folder must not pay for the AWS libraries.
            import s3fs
            from aiobotocore.session import AioSession

            session = AioSession(profile=self.profile)
            session.register(EVENT, take_body)
            self._fs = s3fs.S3FileSystem(
                session=session,
                skip_instance_cache=True,
                use_listings_cache=False,
                max_concurrency=1,
                config_kwargs={
                    "max_pool_connections": self.IN_FLIGHT,
                    "connect_timeout": 5,
                    "read_timeout": 30,
                    "retries": {"mode": "standard", "total_max_attempts": 1},
                },
            )
            self._fs.retries = 1
        return self._fs

    def _retried(self, request: Callable[[], Coroutine[Any, Any, T]], path: str, seconds: float) -> T:
        """The answer, asking again with full jitter while that can help, for `seconds` in all."""
        end = time.monotonic() + seconds
        for attempt in itertools.count():
            try:
                filesystem = self._filesystem()
                future = asyncio.run_coroutine_threadsafe(_awaited(request), filesystem.loop)
                try:
                    return future.result(max(0.1, end - time.monotonic()))
                except FutureTimeoutError:
                    future.cancel()
                    raise
            except Exception as error:  # every library below raises its own kinds; _verdict sorts them
                verdict = _verdict(error, self.url(path))
                pause = random.uniform(0, min(20.0, 0.1 * 2**attempt))
                if verdict is not None and not (_expired(error) and attempt == 0):
                    raise verdict from error
                if time.monotonic() + pause >= end:
                    raise StorageError(
                        f"{self.url(path)}: storage failed for {seconds:.0f} s ({_sentence(error)}); "
                        "run the same command again when it is back"
                    ) from error
                if _expired(error):
                    self._fs, self._quick_is_open = None, False
                self.retries += 1
                time.sleep(pause)
        raise AssertionError("unreachable")


def _s3_storage(root: str, profile: str | None) -> S3Storage:
    return S3Storage(root, profile=profile)


async def _awaited(request: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await request()


_AGAIN = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed", "Throttling"),
    *("ConditionalRequestConflict", "OperationAborted", "BadDigest", "IncompleteBody", "500", "502", "503", "504"),
}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_CREDENTIALS = {
    *("AccessDenied", "403", "401", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"),
    *_EXPIRED,
}


def _verdict(error: BaseException, url: str) -> StorageError | None:
    """What a failed request means, or None where asking again can help."""
    code = _code(error)
    if code in {"PreconditionFailed", "412"}:
        return Changed(f"{url} changed after the plan; run again to plan it as it is now")
    if code == "NoSuchBucket":
        return Denied(f"{url}: there is no such bucket; create it, or correct the name and AWS_ENDPOINT_URL_S3")
    if code in _MISSING or (code is None and isinstance(error, FileNotFoundError)):
        return NotFound(f"there is no object {url}")
    if code in _CREDENTIALS or (code is None and isinstance(error, PermissionError)):
        return Denied(f"{url}: access denied ({code}); check the credentials and what they may do there")
    if "Credential" in type(error).__name__ or type(error).__name__ == "ProfileNotFound":
        return Denied(
            f"{url}: no usable AWS credentials ({_sentence(error)}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or name a profile in the job"
        )
    if code in _AGAIN or _is_of_transport(error):
        return None
    return StorageError(f"{url}: {_sentence(error)}")


def _expired(error: BaseException) -> bool:
    return _code(error) in _EXPIRED


def _code(error: BaseException | None) -> str | None:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code"))
        error = error.__cause__
    return None


_TRANSPORT = {
    *("EndpointConnectionError", "ConnectionClosedError", "ReadTimeoutError", "ConnectTimeoutError", "HTTPClientError"),
    *("IncompleteReadError", "ResponseStreamingError", "ConnectionError", "ClientPayloadError", "ClientError"),
    *("FSTimeoutError", "TimeoutError", "ResponseParserError", "SSLError"),
}


def _is_of_transport(error: BaseException | None) -> bool:
    while error is not None:
        if any(kind.__name__ in _TRANSPORT for kind in type(error).__mro__) and _code(error) is None:
            return True
        error = error.__cause__
    return False


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
