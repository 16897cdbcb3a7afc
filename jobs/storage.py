"""The only door to files and buckets: objects and ranges of them, listings, and create-if-absent.

Knows nothing of jobs. Two kinds of storage, one contract: `LocalStorage` (fsynced temporary files,
`os.link`) and `S3Storage` (s3fs with its caches and retries off, and one retry loop here, because
retries in three layers multiply to over a hundred attempts and half an hour per call).
"""

import asyncio
import itertools
import os
import random
import re
import secrets
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import Changed, Denied, JobError, NotFound, StorageError
from jobs.listing import ranged_pages
from jobs.pages import EVENT, OBJECTS, Page, take_body
from jobs.parts import FAULTS, Fault

T = TypeVar("T")

_TEMPORARY = ".maskfleet-tmp-"
_ROWS = 1024
"""Of a table of a local listing."""


class Entry(NamedTuple):
    """An object in a listing.

    Attributes:
        path: Relative to the storage's root, with forward slashes.
        size: Bytes.
        etag: Changes when the content does: S3's ETag, or a local file's modification time in ns.
    """

    path: str
    size: int
    etag: str
    modified: float | None = None
    """Seconds since 1970."""


class Storage(ABC):
    """Objects below a root folder or prefix. Paths are relative to the root.

    Every method raises `Denied` where credentials or permissions do not suffice and `StorageError`
    where storage goes on failing.
    """

    root: str
    retries: int = 0
    """Requests repeated so far."""

    @abstractmethod
    def read(self, path: str, etag: str | None = None) -> bytes:
        """The whole object.

        Args:
            path: Which.
            etag: What it must still have; None for any.

        Raises:
            NotFound: There is none.
            Changed: It has another etag.
        """

    @abstractmethod
    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        """A piece of the object, fewer bytes where it ends before; at least one byte must be there. Likewise."""

    @abstractmethod
    def opened(self, path: str, etag: str | None = None) -> AbstractContextManager[BinaryIO]:
        """The object as a local file with a descriptor, of an object that does not fit into memory. Likewise."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Put an object there, whole or not at all, over what may be there."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Put an object there unless there is one.

        Returns:
            True: this call created it. False: there is one, and after a lost response it may be this
            call's own; a caller that must know reads it back and looks for a nonce of its own.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove the object, if there."""

    @abstractmethod
    def listed(self, path: str = "") -> Iterator[pa.Table]:
        """Every object at or below a folder, as tables of `OBJECTS`, in order of path by code point.

        Nothing there gives nothing.
        """

    def walk(self, path: str = "") -> Iterator[Entry]:
        """The same one by one, where there are few."""
        for table in self.listed(path):
            yield from map(Entry, *(column.to_pylist() for column in table.columns))

    @abstractmethod
    def names(self, path: str) -> list[str]:
        """Names directly in a folder, objects and folders, sorted."""

    @abstractmethod
    def entry(self, path: str) -> Entry:
        """One object's entry.

        Raises:
            NotFound: There is none.
        """

    def url(self, path: str) -> str:
        """The full name of an object, for people and other programs."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self.entry(path)
        except NotFound:
            return False
        return True


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


class LocalStorage(Storage):
    """A folder. Needs a file system with hard links for `create`."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def read(self, path: str, etag: str | None = None) -> bytes:
        file = self._file(path)
        with _translated(file), open(file, "rb") as stream:
            # The state of the open file, before and after: a writer in between would give a mixture.
            before = os.fstat(stream.fileno())
            data = stream.read()
            after = os.fstat(stream.fileno())
        if _etag(before) != _etag(after) or (etag is not None and _etag(after) != etag):
            raise Changed(f"{file} changed after the plan; run again to plan it as it is now")
        return data

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        file = self._file(path)
        with _translated(file), open(file, "rb", buffering=0) as stream:
            stream.seek(start)
            data = stream.read(length)
            while len(data) < length and (more := stream.read(length - len(data))):
                data += more
            state = _etag(os.fstat(stream.fileno()))
        if etag is not None and state != etag:
            raise Changed(f"{file} changed after the plan; run again to plan it as it is now")
        return data

    @contextmanager
    def opened(self, path: str, etag: str | None = None) -> Iterator[BinaryIO]:
        file = self._file(path)
        with _translated(file), open(file, "rb") as stream:
            yield stream
            state = _etag(os.fstat(stream.fileno()))
        if etag is not None and state != etag:
            raise Changed(f"{file} changed after the plan; run again to plan it as it is now")

    def write(self, path: str, data: bytes) -> None:
        file = self._file(path)
        with _translated(file):
            temporary = self._temporary(file, data)
            os.replace(temporary, file)
            _sync_folder(file.parent)

    def create(self, path: str, data: bytes) -> bool:
        file = self._file(path)
        with _translated(file):
            temporary = self._temporary(file, data)
            try:
                os.link(temporary, file)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
            _sync_folder(file.parent)
        return True

    def export(self, path: str, data: bytes) -> None:
        """`write` without waiting for the disk: for copies that can be made again."""
        file = self._file(path)
        with _translated(file):
            temporary = self._temporary(file, data, sync=False)
            os.replace(temporary, file)

    def delete(self, path: str) -> None:
        file = self._file(path)
        with _translated(file), suppress(FileNotFoundError):
            os.unlink(file)

    def listed(self, path: str = "") -> Iterator[pa.Table]:
        entries = self._below(self._file(path), path.strip("/"), frozenset())
        while chunk := list(itertools.islice(entries, _ROWS)):
            yield _table(chunk)

    def _below(self, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        try:
            status = os.stat(folder)
            # A folder stands where the paths below it do: behind `a.jpg` come those of `a/`, then `a0.jpg`.
            items = sorted(os.scandir(folder), key=lambda item: _shown(item.name) + "/" * item.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as error:
            raise Denied(f"folder {folder} cannot be read; check its permissions") from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link back to a folder that this one is in
            return
        for item in items:
            path = f"{prefix}/{_shown(item.name)}" if prefix else _shown(item.name)
            try:
                if item.is_dir():
                    yield from self._below(folder / item.name, path, above | {identity})
                elif item.is_file() and not item.name.startswith(_TEMPORARY):
                    status = item.stat()
                    yield Entry(path, status.st_size, _etag(status), status.st_mtime)
            except FileNotFoundError:  # deleted since the folder was read
                continue

    def names(self, path: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._file(path)) if not name.startswith(_TEMPORARY))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entry(self, path: str) -> Entry:
        file = self._file(path)
        with _translated(file):
            status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{file} is no file")
        return Entry(path, status.st_size, _etag(status), status.st_mtime)

    def _file(self, path: str) -> Path:
        if any(part == ".." for part in path.split("/")) or path.startswith("/"):
            raise StorageError(f"path {path!r} leads out of {self.root}")
        return Path(self.root, path)

    def _temporary(self, file: Path, data: bytes, *, sync: bool = True) -> str:
        # In the final folder, since a name can only be given atomically within one file system.
        temporary = f"{file.parent}/{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if sync:
                os.fsync(descriptor)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        return temporary


class _translated:  # noqa: N801  (reads as a statement)
    """Errors of the operating system as this package's."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError) and os.path.exists(_as_stored(self.file)):
            raise Fault("bad_name", f"{self.file}: {FAULTS['bad_name']}") from error
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise NotFound(f"there is no file {self.file}") from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise StorageError(f"{self.file} cannot be made: a file stands where a folder should; move it") from error
        if isinstance(error, PermissionError):
            raise Denied(f"{self.file}: permission denied; check the owner and mode of its folder") from error
        if isinstance(error, OSError):
            raise StorageError(f"{self.file}: {error.strerror or error}") from error


def _table(entries: Iterable[Entry]) -> pa.Table:
    columns = zip(*entries, strict=True)
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, OBJECTS, strict=True)], schema=OBJECTS
    )


def _shown(name: str) -> str:
    """A name as text, with escapes for bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _as_stored(file: Path) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(file))


def _etag(status: os.stat_result) -> str:
    return f"mtime-{status.st_mtime_ns}-{status.st_size}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        if not self.bucket:
            raise JobError(f"{root}: a bucket is missing; write s3://bucket/prefix")

    def __reduce__(self) -> tuple[Any, ...]:
        # Never the file system: pickled, it would carry the secret key.
        return _s3_storage, (self.root, self.profile)

    def read(self, path: str, etag: str | None = None) -> bytes:
        condition = {"IfMatch": f'"{etag}"'} if etag else {}

        async def get() -> bytes:
            answer = await self._call("get_object", path, **condition)
            return bytes(await answer["Body"].read())

        return self._retried(get, path, self.GET_SECONDS)

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        condition = {"IfMatch": f'"{etag}"'} if etag else {}

        async def get() -> bytes:
            answer = await self._call("get_object", path, Range=f"bytes={start}-{start + length - 1}", **condition)
            return bytes(await answer["Body"].read())

        return self._retried(get, path, self.GET_SECONDS)

    @contextmanager
    def opened(self, path: str, etag: str | None = None) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:
            for start in range(0, self.entry(path).size, self.PART):
                file.write(self.read_range(path, start, self.PART, etag))
            file.seek(0)
            yield file

    def write(self, path: str, data: bytes) -> None:
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
                    self._fs = None
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
