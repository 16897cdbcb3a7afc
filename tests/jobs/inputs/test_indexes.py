import pytest
from conftest import jpeg, tar

from maskfleet.jobs.inputs import indexes as module
from maskfleet.jobs.inputs.containers.tar_headers import TarMember
from maskfleet.jobs.inputs.indexes import Index, Indexes
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.begin import start_plan
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage

MEMBERS = [TarMember("ä/x.jpg", 512, 9), TarMember("", 4096, 0, "damaged_tar")]
INDEX = Index(MEMBERS, {".json": 2})


def test_an_index_belongs_to_one_version_of_a_tar(tmp_path):
    storage = LocalStorage(str(tmp_path))
    indexes = Indexes(storage)
    assert indexes.get("/in/a.tar", "e") is None
    indexes.add("/in/a.tar", "e", INDEX)
    indexes.add("/in/none.tar", "e", Index([]))
    assert Indexes(storage).get("/in/a.tar", "e") is None  # a plan alone writes nothing
    indexes.store(storage)
    assert Indexes(storage).get("/in/a.tar", "e") == INDEX
    assert Indexes(storage).get("/in/none.tar", "e") == Index([], {})
    assert Indexes(storage).get("/in/a.tar", "other") is None
    assert Indexes(storage).get("/in/b.tar", "e") is None


def test_an_index_is_void_once_there_is_a_new_image_format(tmp_path, monkeypatch):
    storage = LocalStorage(str(tmp_path))
    indexes = Indexes(storage)
    indexes.add("/in/a.tar", "e", INDEX)
    indexes.store(storage)
    monkeypatch.setattr(module, "ENDINGS", (*module.ENDINGS, ".new"))
    assert Indexes(storage).get("/in/a.tar", "e") is None


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more"])
def test_a_damaged_index_is_ignored(tmp_path, damage):
    storage = LocalStorage(str(tmp_path))
    indexes = Indexes(storage)
    indexes.add("/in/a.tar", "e", INDEX)
    indexes.store(storage)
    (name,) = storage.names("catalog/indexes")
    storage.write(f"catalog/indexes/{name}", damage)
    assert Indexes(storage).get("/in/a.tar", "e") is None


def test_an_unchanged_tar_is_not_listed_again(tmp_path, weights_file, monkeypatch):
    folder = tmp_path / "in"
    for name in "ab":
        tar(folder / f"{name}.tar", [(f"{number}.jpg", jpeg(number)) for number in range(3)])
    with open(folder / "b.tar", "r+b") as file:  # damages the second member's header
        file.seek(-(-len(jpeg(0)) // 512) * 512 + 512)
        file.write(b"\0damage")
    job = Job.of({"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file})
    first = run(job)
    assert (first.images, first.ok) == (6, 5)
    read = []
    whole = LocalStorage.read_range

    def counted(self, path, *rest):
        if path.endswith(".tar"):
            read.append(path.rsplit("/", 1)[-1])
        return whole(self, path, *rest)

    monkeypatch.setattr(LocalStorage, "read_range", counted)
    second = run(job)
    assert (second.images, second.listed, second.gone, read) == (0, 6, 0, [])
    stale = start_plan(job, "another fingerprint")
    assert stale.first.table["url"].to_pylist() == [record.url for record in Source(str(folder), output="/nowhere")]
    read.clear()
    tar(folder / "a.tar", [("0.jpg", jpeg(0)), ("new.jpg", jpeg(7))])
    third = run(job)
    assert (third.planned, third.gone) == ({"changed": 1, "new": 1}, 2)
    assert set(read) == {"a.tar"}


def test_the_images_of_a_damaged_tar_are_not_taken_to_be_gone(tmp_path, weights_file):
    path = tar(tmp_path / "in/a.tar", [(f"{number}.jpg", jpeg(number)) for number in range(6)])
    job = Job.of({"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file})
    assert run(job).images == 6
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 700])
    cut = run(job)
    assert (cut.damaged_containers, cut.gone) == (1, 0)
    assert 2 <= cut.ok <= 4
    # The index of the cut tar says so too.
    again = run(job)
    assert (again.images, again.gone) == (0, 0)
