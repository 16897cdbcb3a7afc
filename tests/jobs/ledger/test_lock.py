import json
import os
import subprocess
import sys
import threading
import time

import pytest

from maskfleet.jobs.errors import Locked
from maskfleet.jobs.ledger.commit import Commit, Commits
from maskfleet.jobs.ledger.lock import Lock, waited
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


def test_a_holder_on_another_machine_is_superseded_once_it_is_stale(storage):
    foreign(storage)
    with pytest.raises(Locked, match="on other"):
        Lock(storage)
    foreign(storage, renewed=time.time() - 61)
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
    record = json.loads(storage.read("lock/000001.json"))
    storage.write("lock/000001.json", json.dumps(record | {"renewed": time.time() - 61}).encode())  # silent since
    second = Lock(storage)
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
    waited(storage, pause=0.05).release()
    assert time.monotonic() - began >= 0.3
    with Lock(storage), pytest.raises(Locked):
        waited(storage, lambda: True)
