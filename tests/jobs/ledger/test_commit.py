import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.errors import Damaged, Locked, StorageError
from maskfleet.jobs.ledger.commit import Commit, Commits, Object, checked, leaves, nonce, pending, probe, put
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage


def attempt(shard="00000"):
    name = nonce()
    return Commit(shard, name, {"stats.parquet": Object(f"{shard}/{name}/stats.parquet", 3, "ab")}, 5, 1)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request, tmp_path):
    return open_storage(str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket"))


class LosesAnswers:
    """Storage with a conditional PUT that may succeed and still answer "exists", as a retried request does."""

    def __init__(self, storage, seed):
        self._storage, self._random = storage, random.Random(seed)

    def create(self, path, data):
        created = self._storage.create(path, data)
        return created and self._random.random() > 0.5

    def __getattr__(self, name):
        return getattr(self._storage, name)


@pytest.mark.parametrize("mode", ["worker", "driver"])
def test_the_first_commit_counts(storage, mode):
    commits = Commits(storage, "run", mode)
    first, second = attempt(), attempt()
    assert commits.get("00000") is None
    assert commits.commit(first) == first
    assert commits.commit(second) == first
    assert commits.get("00000") == first
    assert commits.all() == {"00000": first}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_exactly_one_of_racing_attempts_knows_that_it_won(tmp_path_factory, seed):
    storage = LosesAnswers(LocalStorage(str(tmp_path_factory.mktemp("race"))), seed)
    commits = Commits(storage, "run", "worker")
    attempts = [attempt() for _ in range(4)]
    counted = {}
    threads = [
        threading.Thread(target=lambda mine=mine: counted.update({mine.attempt: commits.commit(mine)}))
        for mine in attempts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({commit.attempt for commit in counted.values()}) == 1
    assert sum(mine == commit.attempt for mine, commit in counted.items()) == 1


def test_a_split_shard_cannot_be_committed_as_a_whole(storage):
    commits = Commits(storage, "run", "worker")
    shard = Shard("00000", 0, 4)
    assert commits.split(shard).split
    assert commits.commit(attempt("00000")).split
    # A committed shard cannot be split.
    done = commits.commit(attempt("00001"))
    assert commits.split(Shard("00001", 0, 4)) == done


def test_pending_and_leaves_follow_splits(tmp_path):
    commits = Commits(LocalStorage(str(tmp_path)), "run", "worker")
    shards = [Shard("00000", 0, 8), Shard("00001", 0, 8), Shard("00002", 0, 3)]
    commits.commit(attempt("00001"))
    commits.split(shards[0])
    commits.commit(attempt("00000.1"))
    found = commits.all()
    assert list(pending(shards, found)) == [Shard("00000.0", 0, 4), shards[2]]
    assert [shard for shard, _ in leaves(shards, found)] == [Shard("00000.1", 4, 8), shards[1]]


def test_the_probe_accepts_storage_with_create_if_absent(storage):
    assert probe(storage) == ("worker", "")
    assert storage.names("") in ([], [".maskfleet-probe"])
    assert list(storage.walk()) == []


class IgnoresConditions(LocalStorage):
    def create(self, path, data):
        self.write(path, data)
        return True


def test_the_probe_detects_storage_without_create_if_absent(tmp_path):
    assert probe(IgnoresConditions(str(tmp_path))) == ("driver", "the storage ignores If-None-Match")


class Blind(LocalStorage):
    def create(self, path, data):
        return False


def test_a_commit_that_exists_but_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="exists but cannot be read"):
        Commits(Blind(str(tmp_path)), "run", "worker").commit(attempt())


def test_a_file_that_was_changed_or_lost_is_damaged_and_the_remedy_loses_nothing(tmp_path):
    """Finding 11 of the attacks: the remedy was to delete the run's folder, which lost all of its masks."""
    storage = LocalStorage(str(tmp_path))
    item = put(storage, "a/b", b"12345")
    assert checked(storage, item) == b"12345"
    storage.write("a/b", b"12346")
    with pytest.raises(Damaged, match="does not match its commit"):
        checked(storage, item)
    storage.delete("a/b")
    with pytest.raises(Damaged, match="is missing"):
        checked(storage, item)
    item = put(storage, "runs/R/shards/00003.1/a/stats.parquet", b"12345")
    storage.write(item.path, b"")
    with pytest.raises(Damaged, match=f"maskfleet redo {tmp_path} --shard R/00003.1$"):
        checked(storage, item)


# Only the driver commits -------------------------------------------------------------------------


def lock_of(storage, generation):
    storage.write(f"lock/{generation:06}.json", b"{}")
    return Fence(storage, generation)


def test_a_stalled_committer_overwrites_no_commit_of_its_successor(tmp_path):
    """Finding 18 of the attacks: it looks, is stopped, another driver commits, and its own write comes last."""
    storage = IgnoresConditions(str(tmp_path))
    stalled = Commits(storage, "run", "driver", lock_of(storage, 1))
    late, first = attempt(), attempt()
    names = type(stalled)._names

    class Stopped(IgnoresConditions):
        def write(self, path, data):
            second = Commits(storage, "run", "driver", lock_of(storage, 2))
            assert second.commit(first).attempt == first.attempt
            super().write(path, data)

    stalled._storage = Stopped(str(tmp_path))
    with pytest.raises(Locked):
        stalled.commit(late)
    for mode in ("driver", "worker"):
        readers = Commits(storage, "run", mode)
        assert readers.all()["00000"].attempt == first.attempt
    assert Commits(storage, "run", "driver").get("00000").attempt == first.attempt
    assert names(readers) == {"00000": "00000@000002.json"}
    # A third driver finds the shard done.
    assert Commits(storage, "run", "driver", lock_of(storage, 3)).commit(attempt()).attempt == first.attempt


def test_commits_of_an_earlier_version_count_in_driver_mode(tmp_path):
    storage = IgnoresConditions(str(tmp_path))
    old = attempt()
    storage.write("runs/run/commits/00000.json", old.to_json())
    commits = Commits(storage, "run", "driver", lock_of(storage, 1))
    assert commits.commit(attempt()) == old
    assert commits.get("00000") == old


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b"null", b'{"shard": 1}', b'{"objects": 1}'])
def test_a_damaged_commit_is_said_to_be_damaged(tmp_path, data):
    storage = LocalStorage(str(tmp_path))
    storage.write("runs/R/commits/00002.json", data)
    for read in (lambda commits: commits.all(), lambda commits: commits.get("00002")):
        with pytest.raises(Damaged, match=r"--shard R/00002$"):
            read(Commits(storage, "R", "worker"))
