"""The storage contract, kept by every kind of storage."""

import threading

import pytest

from maskfleet.jobs.errors import Changed, NotFound
from maskfleet.jobs.storage.schemes import open_storage


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    return open_storage(request.getfixturevalue("bucket") + "/some/prefix")


def test_a_written_object_is_read_back(storage):
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    entry = storage.entry("a/b.bin")
    assert (entry.path, entry.size) == ("a/b.bin", 3)
    assert storage.read("a/b.bin", entry.etag) == b"two"
    storage.write("a/b.bin", b"three")
    with pytest.raises(Changed, match="changed after planning"):
        storage.read("a/b.bin", entry.etag)


def test_a_range_ends_with_the_object(storage):
    storage.write("a", bytes(range(100)))
    etag = storage.entry("a").etag
    assert storage.read_range("a", 10, 5) == bytes(range(10, 15))
    assert storage.read_range("a", 90, 50, etag) == bytes(range(90, 100))
    storage.write("a", b"another")
    with pytest.raises(Changed):
        storage.read_range("a", 0, 1, etag)
    with pytest.raises(NotFound):
        storage.read_range("none", 0, 1)


def test_create_writes_an_object_once(storage):
    assert storage.create("x/y", b"first")
    assert not storage.create("x/y", b"second")
    assert storage.read("x/y") == b"first"


def test_one_of_many_concurrent_creators_wins(storage):
    barrier, wins = threading.Barrier(8), []

    def race(number):
        barrier.wait()
        if storage.create("raced", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in wins] == [storage.read("raced")]


def test_a_listing_is_sorted_and_recursive(storage):
    for path in ("b/2", "a", "b/1", "c/d/e"):
        storage.write(path, path.encode())
    assert sorted(entry.path for entry in storage.walk()) == ["a", "b/1", "b/2", "c/d/e"]
    assert [(entry.path, entry.size) for entry in storage.walk("b")] == [("b/1", 3), ("b/2", 3)]
    assert storage.names("") == ["a", "b", "c"]
    assert storage.names("b") == ["1", "2"]
    assert storage.names("nothing") == []
    assert list(storage.walk("nothing")) == []


def test_a_missing_object_is_not_found(storage):
    for call in (storage.read, storage.entry):
        with pytest.raises(NotFound, match="there is no"):
            call("none")
    assert not storage.exists("none")
    storage.delete("none")
    storage.write("here", b"")
    assert storage.exists("here")
    storage.delete("here")
    assert not storage.exists("here")
