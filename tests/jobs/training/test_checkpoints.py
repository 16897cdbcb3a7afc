import pytest

from maskfleet.jobs.errors import Denied, Locked
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import Lock
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.training.checkpoints import Checkpoints


def checkpoints(storage):
    return Checkpoints(storage, "training", Fence(storage, 1))


@pytest.fixture(params=["disk", "bucket"])
def storage(request, tmp_path):
    return LocalStorage(str(tmp_path)) if request.param == "disk" else open_storage(request.getfixturevalue("bucket"))


def test_the_newest_is_found_and_older_ones_are_deleted(storage):
    this = checkpoints(storage)
    assert this.newest() is None
    best = this.save(10, {"state": b"ten", "best": b"good"}).objects["best"]
    for step in (20, 30, 40):
        this.save(step, {"state": str(step).encode()}, {"best": best})
    checkpoint, files = checkpoints(storage).newest()
    assert checkpoint.step == 40
    assert files == {"state": b"40", "best": b"good"}
    left = sorted(entry.path.rsplit("/", 1)[-1] for entry in storage.walk("training"))
    assert left == ["000000030.json", "000000040.json", "best", "state", "state"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    storage = LocalStorage(str(tmp_path))
    this = checkpoints(storage)
    this.save(10, {"state": b"ten"})
    damaged = this.save(20, {"state": b"twenty"}).objects["state"]
    storage.write(damaged.path, b"twentx")
    assert this.newest()[1] == {"state": b"ten"}
    # The step can be committed again.
    this.save(20, {"state": b"twenty"})
    assert this.newest()[1] == {"state": b"twenty"}


class Keeping(LocalStorage):
    """Storage without the right to delete."""

    tried = 0

    def delete(self, path):
        self.tried += 1
        raise Denied("no right to delete")


def test_without_the_right_to_delete_older_checkpoints_stay(tmp_path):
    storage = Keeping(str(tmp_path))
    this = checkpoints(storage)
    for step in (10, 20, 30, 40, 50):
        this.save(step, {"state": str(step).encode()})
    assert storage.tried == 1
    assert this.newest()[1] == {"state": b"50"}
    storage.write(this.save(60, {"state": b"60"}).objects["state"].path, b"61")
    assert checkpoints(storage).newest()[1] == {"state": b"50"}


class Killed(BaseException):
    pass


class Mortal(LocalStorage):
    """Storage that dies before a given change."""

    def __init__(self, root, moment):
        super().__init__(root)
        self.moment = moment

    def _change(self, method, *arguments):
        if self.moment == 0:
            raise Killed
        self.moment -= 1
        return method(*arguments)

    def write(self, path, data):
        self._change(super().write, path, data)

    def create(self, path, data):
        return self._change(super().create, path, data)

    def delete(self, path):
        self._change(super().delete, path)


def test_a_kill_at_any_change_leaves_an_intact_checkpoint(tmp_path):
    """Three steps are saved, with a kill before each change of the storage in turn."""
    moment, killed = 0, True
    while killed:
        root = str(tmp_path / str(moment))
        checkpoints(LocalStorage(root)).save(10, {"state": b"10", "best": b"x"})
        this, killed, done = checkpoints(Mortal(root, moment)), False, 10
        this._fence = Fence(LocalStorage(root), 1)
        try:
            for step in (20, 30, 40):
                this.save(step, {"state": str(step).encode()})
                done = step
        except Killed:
            killed = True
        checkpoint, files = checkpoints(LocalStorage(root)).newest()
        assert checkpoint.step in (done, done + 10)
        assert files["state"] == str(checkpoint.step).encode()
        moment += 1
    assert moment > 10


def test_a_superseded_process_saves_nothing(tmp_path):
    storage = LocalStorage(str(tmp_path))
    with Lock(storage):
        pass
    with Lock(storage), pytest.raises(Locked):
        checkpoints(storage).save(10, {"state": b"late"})
    assert checkpoints(storage).newest() is None
