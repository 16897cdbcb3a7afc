"""The commit: the one small record that makes an attempt at a shard true.

Every attempt writes under a name of its own and overwrites nothing. Then one conditional PUT of
`commits/<shard>.json` decides. A request whose response was lost may have won, so whoever is told
"exists" reads the record and looks for its own nonce. A shard that kills workers is cut in two by
the same record: it then names its halves instead of an attempt, so that an attempt from the past
cannot be committed beside them. Readers start from commits, never from a listing of attempts.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from maskfleet.jobs.errors import Damaged, NotFound, StorageError
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.storage.contract import Storage

Mode = Literal["worker", "driver"]

_RACERS = 8
_READS_IN_FLIGHT = 32


class Object(NamedTuple):
    """A file of an attempt.

    Attributes:
        path: In the output.
        size: Bytes.
        sha256: Hexadecimal.
    """

    path: str
    size: int
    sha256: str


class Commit(NamedTuple):
    """What a shard came to.

    Attributes:
        shard: The shard's id.
        attempt: Nonce of the attempt that counts; of a cut, of the record itself.
        objects: Its files, by name (`masks.tar`, `stats.parquet`).
        images: Rows in its statistics.
        failed: How many of them failed.
        split: Whether the shard was cut in two instead; then `<id>.0` and `<id>.1` have commits of their own.
        generation: Of the lock under which it was made.
    """

    shard: str
    attempt: str
    objects: Mapping[str, Object]
    images: int
    failed: int
    split: bool = False
    generation: int = 0

    def to_json(self) -> bytes:
        """As stored."""
        record = self._asdict()
        record["objects"] = {name: item._asdict() for name, item in self.objects.items()}
        return json.dumps(record, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Commit":
        """As read back."""
        record: dict[str, Any] = json.loads(data)
        record["objects"] = {name: Object(**item) for name, item in record["objects"].items()}
        return cls(**record)


def put(storage: Storage, path: str, data: bytes) -> Object:
    """Write a file, and say what a commit must say of it."""
    storage.write(path, data)
    return Object(path, len(data), hashlib.sha256(data).hexdigest())


def checked(storage: Storage, item: Object) -> bytes:
    """A file, as its commit describes it.

    Raises:
        NotFound: It is missing.
        Damaged: It is another.
    """
    data = storage.read(item.path)
    if len(data) != item.size or hashlib.sha256(data).hexdigest() != item.sha256:
        raise Damaged(
            f"{storage.url(item.path)} is not what its commit describes ({len(data)} bytes, {item.size} expected); "
            "restore it, or delete the run's folder and run again"
        )
    return data


def nonce() -> str:
    """A name that nobody else has."""
    return secrets.token_hex(8)


class Commits:
    """The commits of one run.

    Args:
        storage: The output.
        run_id: Whose.
        mode: "worker" where storage keeps the condition; "driver" where it does not and only the
            driver may commit, one at a time.
        fence: Of the driver that this commits for; None where nothing is committed.
    """

    def __init__(self, storage: Storage, run_id: str, mode: Mode, fence: Fence | None = None) -> None:
        self._storage = storage
        self._folder = f"runs/{run_id}/commits"
        self._fence = fence
        self.mode = mode

    def commit(self, commit: Commit) -> Commit:
        """Make this true, unless something else is.

        Returns:
            The commit that counts: this one, or the one that was first.

        Raises:
            Locked: Another driver has taken over.
        """
        if self._fence is not None:
            self._fence.check()
            commit = commit._replace(generation=self._fence.generation)
        path = f"{self._folder}/{commit.shard}.json"
        if self.mode == "driver":
            if (first := self.get(commit.shard)) is not None:
                return first
            self._storage.write(path, commit.to_json())
            return commit
        if self._storage.create(path, commit.to_json()):
            return commit
        first = self.get(commit.shard)
        if first is None:
            raise StorageError(f"{self._storage.url(path)} exists and cannot be read; run the same command again")
        return first

    def split(self, shard: Shard) -> Commit:
        """Cut a shard in two, unless it is done. Returns the commit that counts."""
        return self.commit(Commit(shard.id, nonce(), {}, 0, 0, split=True))

    def get(self, shard_id: str) -> Commit | None:
        """A shard's commit, if it has one."""
        try:
            return Commit.from_json(self._storage.read(f"{self._folder}/{shard_id}.json"))
        except NotFound:
            return None

    def all(self) -> dict[str, Commit]:
        """Every commit, by shard id."""
        names = [name.removesuffix(".json") for name in self._storage.names(self._folder) if name.endswith(".json")]
        with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
            found = pool.map(self.get, names)
        return {commit.shard: commit for commit in found if commit is not None}


def pending(shards: Iterable[Shard], commits: Mapping[str, Commit]) -> Iterator[Shard]:
    """The shards, or parts of shards, that have no commit."""
    for shard in shards:
        commit = commits.get(shard.id)
        if commit is None:
            yield shard
        elif commit.split:
            yield from pending(shard.halves(), commits)


def leaves(shards: Iterable[Shard], commits: Mapping[str, Commit]) -> Iterator[tuple[Shard, Commit]]:
    """The shards, or parts, with the commit that holds their rows, in the manifest's order."""
    for shard in shards:
        commit = commits.get(shard.id)
        if commit is not None and commit.split:
            yield from leaves(shard.halves(), commits)
        elif commit is not None:
            yield shard, commit


def probe(storage: Storage) -> Mode:
    """Whether storage keeps the condition that commits rest on; leaves nothing behind.

    Raises:
        Denied: The output cannot be written.
    """
    path = f".maskfleet-probe/{nonce()}"
    try:
        created = storage.create(path, b"first")
        if not created or storage.create(path, b"second") or storage.read(path) != b"first":
            return "driver"
        storage.delete(path)
        with ThreadPoolExecutor(_RACERS) as pool:
            wins = list(pool.map(lambda racer: storage.create(path, str(racer).encode()), range(_RACERS)))
        # Fewer than one is a lost response, which the protocol bears; more than one is no exclusion.
        return "worker" if sum(wins) <= 1 else "driver"
    finally:
        storage.delete(path)
