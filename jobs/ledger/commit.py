"""The commit: the one small record that makes an attempt at a shard valid.

Every attempt writes under a name of its own and overwrites nothing. Then one conditional PUT of `commits/<shard>.json`
decides. A request may succeed although its response is lost, so on "exists" the attempt reads the record back and looks
for its own nonce. The same record splits a shard that kills workers: it marks the shard as split instead of naming an
attempt, so a late attempt at the whole shard cannot be committed beside its halves. Readers start from commits, never
from a listing of attempts.

Where storage does not honour the condition, only the driver commits, and nothing is overwritten either: the record's
name, `commits/<shard>@<generation>.json`, holds the generation of the driver's lock, and the highest generation counts.
A driver that was stopped before its write, and goes on after another took over, writes a record that nobody reads.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from maskfleet.jobs.errors import Damaged, NotFound
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.storage.contract import Storage

Mode = Literal["worker", "driver"]

PROBES = ".maskfleet-probe"
"""Folder of the objects that probes create and delete."""

_RACERS = 8
_READS_IN_FLIGHT = 32


class Object(NamedTuple):
    """A file written by an attempt.

    Attributes:
        path: Path in the output.
        size: Size in bytes.
        sha256: SHA-256 of the content, hexadecimal.
    """

    path: str
    size: int
    sha256: str


class Commit(NamedTuple):
    """The committed state of a shard.

    Attributes:
        shard: Shard id.
        attempt: Nonce of the committed attempt; for a split, a nonce of the record.
        objects: Files of the attempt, by name (`masks.tar`, `stats.parquet`).
        images: Number of images.
        failed: Number of failed images.
        split: Whether the shard was split in two instead. Its halves, `<id>.0` and `<id>.1`, have their own commits.
        generation: Generation of the lock under which the commit was made.
    """

    shard: str
    attempt: str
    objects: Mapping[str, Object]
    images: int
    failed: int
    split: bool = False
    generation: int = 0

    def to_json(self) -> bytes:
        """Return the record as stored."""
        record = self._asdict()
        record["objects"] = {name: item._asdict() for name, item in self.objects.items()}
        return json.dumps(record, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Commit":
        """Parse a stored record.

        Raises:
            ValueError: The record is damaged.
        """
        try:
            record: dict[str, Any] = json.loads(data)
            record["objects"] = {name: Object(**item) for name, item in record["objects"].items()}
            return cls(**record)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a commit: {error}") from error


def put(storage: Storage, path: str, data: bytes) -> Object:
    """Write a file and return its entry for the commit."""
    storage.write(path, data)
    return Object(path, len(data), hashlib.sha256(data).hexdigest())


def checked(storage: Storage, item: Object) -> bytes:
    """Read a committed file and verify its size and SHA-256.

    Raises:
        Damaged: The file is missing, or differs from its description in the commit.
    """
    try:
        data = storage.read(item.path)
    except NotFound as error:
        raise Damaged(f"{storage.url(item.path)} is missing; {_remedy(storage, item)}") from error
    if len(data) != item.size or hashlib.sha256(data).hexdigest() != item.sha256:
        raise Damaged(
            f"{storage.url(item.path)} does not match its commit ({len(data)} bytes, {item.size} expected); "
            f"{_remedy(storage, item)}"
        )
    return data


def _remedy(storage: Storage, item: Object) -> str:
    folders = item.path.split("/")
    if folders[0] != "runs":
        return "restore it"
    return f"restore it, or make its images again: maskfleet redo {storage.root} --shard {folders[1]}/{folders[3]}"


def nonce() -> str:
    """Return a new unique name: 16 hexadecimal digits."""
    return secrets.token_hex(8)


class Commits:
    """The commits of one run.

    Args:
        storage: Output storage.
        run_id: The run.
        mode: `worker` if storage honours create-if-absent; otherwise `driver`: only the driver commits, one shard at a
            time.
        fence: Fence of the driver on whose behalf commits are made; None for readers.
    """

    def __init__(self, storage: Storage, run_id: str, mode: Mode, fence: Fence | None = None) -> None:
        self._storage = storage
        self._folder = f"runs/{run_id}/commits"
        self._fence = fence
        self._found: dict[str, Commit] | None = None
        self.mode = mode

    def commit(self, commit: Commit) -> Commit:
        """Commit an attempt unless its shard already has a commit.

        Returns:
            The valid commit: this one, or the earlier one.

        Raises:
            Locked: Another driver has taken over.
            Damaged: Storage reports an existing commit but cannot return it.
        """
        if self._fence is not None:
            self._fence.check()
            commit = commit._replace(generation=self._fence.generation)
        if self.mode == "driver":
            return self._commit_alone(commit)
        path = f"{self._folder}/{commit.shard}.json"
        if self._storage.create(path, commit.to_json()):
            return commit
        first = self.get(commit.shard)
        if first is None:
            raise Damaged(f"{self._storage.url(path)} exists but cannot be read; run the same command again")
        return first

    def _commit_alone(self, commit: Commit) -> Commit:
        """Commit as the only process with this generation. A record of an earlier driver is seen when it is listed."""
        if self._found is None:
            self._found = self.all()
        if (first := self._found.get(commit.shard)) is not None:
            return first
        self._storage.write(f"{self._folder}/{commit.shard}@{commit.generation:06}.json", commit.to_json())
        if self._fence is not None:
            self._fence.check()
        self._found[commit.shard] = commit
        return commit

    def split(self, shard: Shard) -> Commit:
        """Split a shard in two unless it already has a commit. Returns the valid commit."""
        return self.commit(Commit(shard.id, nonce(), {}, 0, 0, split=True))

    def get(self, shard_id: str) -> Commit | None:
        """Return the commit of a shard, or None.

        Raises:
            Damaged: The record cannot be read.
        """
        if self.mode == "worker":
            return self._read(f"{shard_id}.json")
        name = self._names().get(shard_id)
        return None if name is None else self._read(name)

    def all(self) -> dict[str, Commit]:
        """Return every commit of the run, by shard id.

        Raises:
            Damaged: A record cannot be read.
        """
        found, damaged = self.readable()
        for error in damaged.values():
            raise error
        return found

    def readable(self) -> tuple[dict[str, Commit], dict[str, Damaged]]:
        """Return the commits of the run, and the errors of those that cannot be read, by shard id."""

        def read(item: tuple[str, str]) -> Commit | Damaged:
            try:
                # Commits are never deleted, so one that is listed is there.
                return self._read(item[1]) or Damaged(f"{self._storage.url(f'{self._folder}/{item[1]}')} is no file")
            except Damaged as error:
                return error

        names = self._names()
        with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
            records = dict(zip(names, pool.map(read, names.items()), strict=True))
        found = {shard: record for shard, record in records.items() if isinstance(record, Commit)}
        return found, {shard: record for shard, record in records.items() if isinstance(record, Damaged)}

    def _names(self) -> dict[str, str]:
        """Return the name of the record that counts, by shard id: the one of the highest generation."""
        names = (name for name in self._storage.names(self._folder) if name.endswith(".json"))
        ordered = sorted((_shard_and_generation(name), name) for name in names)
        return {shard: name for (shard, _), name in ordered}

    def _read(self, name: str) -> Commit | None:
        path = f"{self._folder}/{name}"
        try:
            return Commit.from_json(self._storage.read(path))
        except NotFound:
            return None
        except ValueError as error:
            run_id, (shard, _) = self._folder.split("/")[1], _shard_and_generation(name)
            raise Damaged(
                f"{self._storage.url(path)} is damaged; restore it, or make its images again: "
                f"maskfleet redo {self._storage.root} --shard {run_id}/{shard}"
            ) from error


def _shard_and_generation(name: str) -> tuple[str, int]:
    shard, _, generation = name.removesuffix(".json").partition("@")
    return shard, int(generation) if generation.isdigit() else -1


def pending(shards: Iterable[Shard], commits: Mapping[str, Commit]) -> Iterator[Shard]:
    """Yield the shards, or halves of split shards, without a commit."""
    for shard in shards:
        commit = commits.get(shard.id)
        if commit is None:
            yield shard
        elif commit.split:
            yield from pending(shard.halves(), commits)


def leaves(shards: Iterable[Shard], commits: Mapping[str, Commit]) -> Iterator[tuple[Shard, Commit]]:
    """Yield the committed shards, or halves of split shards, each with its commit, in the manifest's order."""
    for shard in shards:
        commit = commits.get(shard.id)
        if commit is not None and commit.split:
            yield from leaves(shard.halves(), commits)
        elif commit is not None:
            yield shard, commit


class Probed(NamedTuple):
    """What a probe of an output found.

    Attributes:
        mode: Commit mode for this storage; see `Commits`.
        why: Reason for the mode `driver`, for people; "" for `worker`.
    """

    mode: Mode
    why: str = ""


def probe(storage: Storage) -> Probed:
    """Test whether storage honours create-if-absent. Leaves nothing behind.

    Raises:
        Denied: The output is not writable.
    """
    path, race = (f"{PROBES}/{nonce()}" for _ in range(2))
    ignored = Probed("driver", "the storage ignores If-None-Match")
    try:
        created = storage.create(path, b"first")
        if not created or storage.create(path, b"second") or storage.read(path) != b"first":
            return ignored
        if not storage.conditional:
            refused = "the file system has no hard links" if storage.is_local else "the storage refuses If-None-Match"
            return Probed("driver", refused)
        with ThreadPoolExecutor(_RACERS) as pool:
            wins = list(pool.map(lambda racer: storage.create(race, str(racer).encode()), range(_RACERS)))
        # No win is a lost response, tolerated by the protocol. Two wins mean that storage ignores the condition.
        return Probed("worker") if sum(wins) <= 1 else ignored
    finally:
        storage.discard(path)
        storage.discard(race)
