import errno
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from maskfleet.jobs.errors import Denied, Locked, Skipped
from maskfleet.jobs.ledger.commit import Commit, Commits
from maskfleet.jobs.ledger.lock import Lock, Watch, locked
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request, tmp_path):
    return open_storage(str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket"))


def test_only_one_run_holds_the_lock(storage):
    with Lock(storage), pytest.raises(Locked, match=f"held by process {os.getpid()} .* wait for that run, stop it"):
        Lock(storage)
    with Lock(storage):
        pass


def test_at_most_one_of_many_racers_gets_the_lock(storage):
    barrier, held, refused = threading.Barrier(6), [], []

    def race():
        barrier.wait()
        try:
            held.append(Lock(storage))
        except Locked:
            refused.append(1)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) <= 1
    assert len(held) + len(refused) == 6
    for lock in held:
        lock.release()
    Lock(storage).release()


def test_a_dead_holder_is_superseded_at_once(tmp_path):
    code = f"from maskfleet.jobs.ledger.lock import Lock; from maskfleet.jobs.storage.local import LocalStorage; import os; Lock(LocalStorage({str(tmp_path)!r})); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False, cwd=os.getcwd())
    holder = json.loads(LocalStorage(str(tmp_path)).read("lock/000001.json"))
    assert not holder["released"]
    Lock(LocalStorage(str(tmp_path))).release()


def foreign(storage, **more):
    record = {
        "nonce": "x",
        "host": "other",
        "pid": 1,
        "place": "another machine",
        "renewed": time.time(),
        "released": False,
    }
    storage.write("lock/000003.json", json.dumps(record | more).encode())


def test_a_holder_on_another_machine_is_superseded_once_its_record_does_not_change(storage):
    foreign(storage)
    watch = Watch()
    with pytest.raises(Locked, match="on other"):
        Lock(storage, watch=watch, stale=0.2)
    time.sleep(0.3)
    Lock(storage, watch=watch, stale=0.2).release()


def locks(storage, on_overlap, **more):
    """Take the lock as a run does, with a holder that is stale after 0.3 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskfleet.jobs.ledger.lock.Lock", functools.partial(Lock, stale=0.3))
        return locked(storage, on_overlap, pause=0.05, **more)


def test_a_wait_for_a_holder_that_may_be_dead_is_said_once(storage):
    foreign(storage, renewed=time.time() - 3600)
    said = []
    locks(storage, "fail", waiting=said.append).release()
    (sentence,) = said
    assert re.fullmatch(
        r".* is held by process \d+ on other \(renewed \d+ s ago\); it may be dead: waiting for up to 60 s .*", sentence
    )


def test_a_wait_for_another_run_is_said_once(tmp_path):
    storage = LocalStorage(str(tmp_path))
    lock = Lock(storage)
    threading.Timer(0.3, lock.release).start()
    said = []
    locked(storage, "wait", waiting=said.append, pause=0.05).release()
    assert [sentence.partition("; ")[2] for sentence in said] == ["waiting for that run to end"]


@pytest.mark.parametrize("hours", [1, -1])
def test_a_dead_holder_whose_clock_was_wrong_is_superseded(storage, hours):
    """Finding 19 of the attacks: a clock ahead made the lock eternal."""
    foreign(storage, renewed=time.time() + hours * 3600)
    locks(storage, "fail").release()


@pytest.mark.parametrize(("hours", "error"), [(1, Locked), (-1, Locked), (-1, Skipped)])
def test_a_live_holder_whose_clock_is_wrong_keeps_the_output(tmp_path, hours, error):
    storage = LocalStorage(str(tmp_path))
    done = threading.Event()

    def renews():
        for number in itertools.count():
            foreign(storage, renewed=time.time() + hours * 3600 + number)
            if done.wait(0.05):
                return

    thread = threading.Thread(target=renews)
    thread.start()
    try:
        with pytest.raises(error, match="on other"):
            locks(storage, "skip" if error is Skipped else "fail")
    finally:
        done.set()
        thread.join()


def test_waiting_for_a_holder_that_may_be_dead_can_be_stopped(storage):
    foreign(storage, renewed=0)
    began = time.monotonic()
    with pytest.raises(Locked):
        locked(storage, "fail", lambda: True)
    assert time.monotonic() - began < 5


def test_an_unreadable_record_is_superseded_when_it_stays_so(tmp_path):
    storage = LocalStorage(str(tmp_path))
    storage.write("lock/000003.json", b"{")
    with pytest.raises(Locked):
        Lock(storage)
    locks(storage, "fail").release()
    assert storage.names("lock")[0].startswith("000004.")


def test_an_error_of_the_file_system_does_not_end_the_renewing(tmp_path):
    """Finding 19 of the attacks: ESTALE in a listing ended the thread, and the lock was lost a minute later."""

    class Stale(LocalStorage):
        failures = 0

        def names(self, path):
            if threading.current_thread().name == "lock" and self.failures < 2:
                self.failures += 1
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().names(path)

    storage = Stale(str(tmp_path))
    with Lock(storage, renew=0.05):
        first = json.loads(storage.read("lock/000001.json"))["renewed"]
        end = time.monotonic() + 5
        while json.loads(storage.read("lock/000001.json"))["renewed"] == first:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert storage.failures == 2


# Storage that ignores the condition --------------------------------------------------------------


class IgnoresConditions(LocalStorage):
    def create(self, path, data):
        self.write(path, data)
        return True


class Interrupted:
    """A storage running something before or after one of its calls."""

    def __init__(self, storage, call, action, *, after):
        self._storage, self._left, self._action, self._after = storage, call, action, after

    def __getattr__(self, name):
        found = getattr(self._storage, name)
        return self._counted(found) if callable(found) else found

    def _counted(self, call):
        def counted(*arguments):
            self._left -= 1
            if self._left == -1 and not self._after:
                self._action()
            result = call(*arguments)
            if self._left == -1 and self._after:
                self._action()
            return result

        return counted


@pytest.mark.parametrize("kind", [LocalStorage, IgnoresConditions])
@pytest.mark.parametrize("after", [False, True])
def test_of_two_simultaneous_locks_at_most_one_holds_a_generation(tmp_path, kind, after):
    """Finding 18 of the attacks: on storage that ignores If-None-Match both held generation 1."""
    for call in range(9):
        storage = kind(str(tmp_path / str(call)))
        held = []

        def other(storage=storage, held=held):
            with suppress(Locked):
                held.append(Lock(storage))

        with suppress(Locked):
            held.append(Lock(Interrupted(storage, call, other, after=after), renew=600))
        assert len(held) == len({lock.fence.generation for lock in held}), call
        if kind is LocalStorage:  # a run is not lost because two began at once
            assert held
        for lock in held:
            lock.release()


def test_a_loser_puts_the_record_of_the_holder_back(tmp_path):
    storage = IgnoresConditions(str(tmp_path))
    held = []
    # The other has listed the generations, and creates the first one after this one holds it.
    late = Interrupted(storage, 1, lambda: held.append(Lock(storage, renew=600)), after=False)
    with pytest.raises(Locked):
        Lock(late)
    assert json.loads(storage.read("lock/000001.json"))["nonce"] == held[0]._nonce
    held[0].release()
    Lock(storage).release()


def test_a_superseded_holder_notices(tmp_path):
    storage = LocalStorage(str(tmp_path))
    lock = Lock(storage, renew=0.05)
    foreign(storage)
    assert lock.lost.wait(5)
    lock.release()
    assert json.loads(storage.read("lock/000003.json"))["nonce"] == "x"


def test_the_holder_renews_its_record(tmp_path):
    storage = LocalStorage(str(tmp_path))
    with Lock(storage, renew=0.05):
        first = json.loads(storage.read("lock/000001.json"))["renewed"]
        time.sleep(0.3)
        assert json.loads(storage.read("lock/000001.json"))["renewed"] > first


def test_a_suspended_holder_is_superseded_and_cannot_commit_when_it_wakes_up(storage):
    lock = Lock(storage, renew=600)
    commits = Commits(storage, "r", "worker", lock.fence)
    assert commits.commit(Commit("00000", "a", {}, 1, 0)).generation == 1
    second = locks(storage, "wait")
    with pytest.raises(Locked, match="took over .* while this one did not respond"):
        commits.commit(Commit("00001", "b", {}, 1, 0))
    assert commits.get("00001") is None
    assert Commits(storage, "r", "worker", second.fence).commit(Commit("00001", "c", {}, 1, 0)).generation == 2
    lock.release()
    second.release()


def test_waiting_ends_when_the_holder_releases_the_lock(tmp_path):
    storage = LocalStorage(str(tmp_path))
    lock = Lock(storage)
    threading.Timer(0.3, lock.release).start()
    began = time.monotonic()
    locked(storage, "wait", pause=0.05).release()
    assert time.monotonic() - began >= 0.3
    with Lock(storage), pytest.raises(Locked):
        locked(storage, "wait", lambda: True)


class Killed(Exception):
    """The process is gone."""


@pytest.mark.parametrize("after", [False, True])
def test_a_process_killed_while_it_takes_the_lock_keeps_nobody_away(storage, after, monkeypatch):
    monkeypatch.setattr("maskfleet.jobs.ledger.lock._is_dead", lambda holder: holder.get("pid") == os.getpid())

    def killed():
        raise Killed

    reached = True
    for call in range(12):
        storage.write("lock/000007.json", json.dumps({"released": True}).encode())
        try:
            Lock(Interrupted(storage, call, killed, after=after), renew=600)
        except Killed:
            assert reached
        else:
            reached = False
        Lock(storage, renew=600).release()
        for name in storage.names("lock"):
            storage.delete(f"lock/{name}")
    assert not reached


@pytest.mark.parametrize("kind", [LocalStorage, IgnoresConditions])
def test_a_lock_without_the_right_to_delete_is_taken_and_passed_on(tmp_path, kind):
    class Kept(kind):
        def delete(self, path):
            raise Denied("no right to delete")

    storage = Kept(str(tmp_path))
    for generation in range(1, 12):
        with Lock(storage) as lock:
            assert lock.fence.generation == generation
