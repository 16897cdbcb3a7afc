"""A process that was stopped, and goes on after another run took over, writes over nothing."""

import inspect
import time

import pytest

from maskfleet.jobs.errors import Locked
from maskfleet.jobs.ledger import fence as fences
from maskfleet.jobs.ledger.commit import Commit, Commits
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import Lock
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.run.attempt import settle
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request, tmp_path):
    return open_storage(str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket"))


def taken_over(storage):
    storage.write("lock/000009.json", b"{}")


CHANGES = {
    "write": lambda storage: storage.write("a", b"old"),
    "export": lambda storage: storage.export("a", b"old"),
    "export_all": lambda storage: storage.export_all([("a", b"old"), ("b", b"old")]),
    "delete": lambda storage: storage.delete("a"),
    "discard": lambda storage: storage.discard("a"),
}
HARMLESS = {
    "create", "open", "split", "read", "read_range", "opened", "listed", "walk", "names", "entry", "exists", "url",
    "local_path", "remove_folder", "lifetime", "settle", "leftovers", "refused", "answers", "check_reachable",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_changed_once_another_run_has_taken_over(storage, change, monkeypatch):
    monkeypatch.setattr(fences, "FRESH", 0)
    fenced = Fence(storage, 8).storage
    storage.write("a", b"first")
    change(fenced)
    storage.write("a", b"new")
    taken_over(storage)
    with pytest.raises(Locked, match="took over"):
        change(fenced)
    assert storage.read("a") == b"new"


def test_each_method_of_a_storage_is_known_to_change_something_or_not():
    methods = {name for name, _ in inspect.getmembers(Storage, callable) if not name.startswith("_")}
    assert methods == set(CHANGES) | HARMLESS


def test_what_is_created_if_absent_needs_no_fence(storage):
    fenced = Fence(storage, 8).storage
    taken_over(storage)
    assert fenced.create("a", b"1")
    assert fenced.read("a") == storage.read("a") == b"1"
    assert (fenced.root, fenced.is_local) == (storage.root, storage.is_local)


def test_a_check_counts_for_a_second_and_not_longer(tmp_path, monkeypatch):
    class Counting(LocalStorage):
        listings = 0

        def names(self, path):
            self.listings += path == "lock"
            return super().names(path)

    now = time.time()
    monkeypatch.setattr(time, "clock_gettime", lambda which: now)
    monkeypatch.setattr(time, "time", lambda: now)
    storage = Counting(str(tmp_path))
    fence = Fence(storage, 1)
    fence.storage.export_all((f"masks/{number}", b"") for number in range(500))
    assert storage.listings == 1
    for clock in ("clock_gettime", "time"):  # a stop is seen by one clock or by the other
        real = getattr(time, clock)
        with monkeypatch.context() as patch:
            patch.setattr(time, clock, lambda *which, real=real: real(*which) + 60)
            fence.recheck()
        assert storage.listings == {"clock_gettime": 2, "time": 4}[clock]
        fence.recheck()  # the clock went back: that is seen as well


class Stopping(LocalStorage):
    """A storage stopping its process before one of its exports, as SIGSTOP does, until another run is through."""

    def __init__(self, root, before, meanwhile):
        super().__init__(root)
        self._left, self._meanwhile = before, meanwhile

    def export_all(self, items, *, before):
        def stopped():
            self._left -= 1
            if self._left < 0:
                self._meanwhile()
            before()

        super().export_all(items, before=stopped)


@pytest.mark.parametrize("mask", range(3))
def test_a_process_stopped_in_the_middle_of_an_export_writes_no_further_mask(tmp_path, mask, monkeypatch):
    """Finding 9 of the attacks: the export of a zombie overwrote the next night's masks."""
    newer = LocalStorage(str(tmp_path))
    names = [f"masks/{number}.png" for number in range(3)]

    def meanwhile():
        taken_over(newer)
        newer.export_all((name, b"newer") for name in names)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 60)

    fence = Fence(Stopping(str(tmp_path), mask, meanwhile), 1)
    with pytest.raises(Locked):
        fence.storage.export_all((name, b"older") for name in names)
    assert [newer.read(name) for name in names] == [b"newer"] * 3


@pytest.mark.parametrize("mode", ["worker", "driver"])
def test_a_worker_stopped_between_commit_and_export_exports_nothing(tmp_path, mode, monkeypatch):
    """Finding 9 of the attacks: the same run was finished, the next night made a newer mask, and it was overwritten."""
    monkeypatch.setattr(fences, "FRESH", 0)
    storage = LocalStorage(str(tmp_path))
    fence = Fence(storage, 1)

    class Stopped(Commits):
        def commit(self, commit):
            won = super().commit(commit)
            taken_over(storage)
            storage.write("masks/a.png", b"newer")
            return won

    output = RunOutput(
        storage=fence.storage, run_id="night", fingerprint="f", manifest=None,
        commits=Stopped(storage, "night", mode, fence), format=mask_format("png"),
    )  # fmt: skip
    with pytest.raises(Locked):
        settle(output, Commit("00000", "a", {}, 1, 0), {"a.png": b"older"})
    assert storage.read("masks/a.png") == b"newer"
    assert storage.names("runs/night/exports") == []


def test_the_holder_of_a_lock_writes_through_its_fence(storage):
    with Lock(storage) as lock:
        lock.fence.storage.write("a", b"1")
        assert storage.read("a") == b"1"
