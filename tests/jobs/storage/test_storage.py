"""One contract, two kinds of storage."""

import os
import pickle
import threading

import pytest

from maskfleet.jobs.errors import Changed, Denied, JobError, NotFound, StorageError
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.s3 import S3Storage
from maskfleet.jobs.storage.schemes import open_storage, split_url


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    return open_storage(request.getfixturevalue("bucket") + "/some/prefix")


def test_what_is_written_is_read(storage):
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    entry = storage.entry("a/b.bin")
    assert (entry.path, entry.size) == ("a/b.bin", 3)
    assert storage.read("a/b.bin", entry.etag) == b"two"
    storage.write("a/b.bin", b"three")
    with pytest.raises(Changed, match="changed after the plan"):
        storage.read("a/b.bin", entry.etag)


def test_ranges(storage):
    storage.write("a", bytes(range(100)))
    etag = storage.entry("a").etag
    assert storage.read_range("a", 10, 5) == bytes(range(10, 15))
    assert storage.read_range("a", 90, 50, etag) == bytes(range(90, 100))
    storage.write("a", b"another")
    with pytest.raises(Changed):
        storage.read_range("a", 0, 1, etag)
    with pytest.raises(NotFound):
        storage.read_range("none", 0, 1)


def test_create_makes_an_object_once(storage):
    assert storage.create("x/y", b"first")
    assert not storage.create("x/y", b"second")
    assert storage.read("x/y") == b"first"


def test_one_of_many_creators_wins(storage):
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


def test_listing(storage):
    for path in ("b/2", "a", "b/1", "c/d/e"):
        storage.write(path, path.encode())
    assert sorted(entry.path for entry in storage.walk()) == ["a", "b/1", "b/2", "c/d/e"]
    assert [(entry.path, entry.size) for entry in storage.walk("b")] == [("b/1", 3), ("b/2", 3)]
    assert storage.names("") == ["a", "b", "c"]
    assert storage.names("b") == ["1", "2"]
    assert storage.names("nothing") == []
    assert list(storage.walk("nothing")) == []


def test_what_is_not_there(storage):
    for call in (storage.read, storage.entry):
        with pytest.raises(NotFound, match="there is no"):
            call("none")
    assert not storage.exists("none")
    storage.delete("none")
    storage.write("here", b"")
    assert storage.exists("here")
    storage.delete("here")
    assert not storage.exists("here")


@pytest.mark.s3
def test_listing_pages_on(bucket, monkeypatch):
    storage = open_storage(bucket)
    for number in range(7):
        storage.write(f"p/{number}", b"")
    whole = storage._call
    monkeypatch.setattr(
        storage,
        "_call",
        lambda method, path, **more: whole(method, path, **more, **({"MaxKeys": 3} if "list" in method else {})),
    )
    assert [entry.path for entry in storage.walk("p")] == [f"p/{number}" for number in range(7)]


@pytest.mark.s3
def test_buckets_and_credentials_that_are_wrong(s3_server, bucket, monkeypatch):
    with pytest.raises(Denied, match="there is no such bucket"):
        open_storage("s3://no-such-bucket-here").write("a", b"")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Denied, match="no usable AWS credentials"):
        open_storage(bucket).read("a")
    if s3_server == "radosgw":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "WRONG")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
        with pytest.raises(Denied, match="access denied") as error:
            open_storage(bucket).read("a")
        assert "hunter22" not in str(error.value)


@pytest.mark.s3
def test_a_pickled_storage_holds_no_secret(bucket):
    storage = S3Storage(bucket)
    storage.write("a", b"x")
    data = pickle.dumps(storage)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in data
    assert pickle.loads(data).read("a") == b"x"


def test_storage_that_is_away_fails_within_its_time(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    storage = S3Storage("s3://bucket")
    storage._filesystem()  # loading the AWS libraries may take longer than what is waited here
    storage.GET_SECONDS = 3.0
    with pytest.raises(StorageError, match="storage failed for 3 s .* run the same command again"):
        storage.read("a")
    assert storage.retries > 0


def test_local_paths_stay_below_the_root(tmp_path):
    storage = LocalStorage(str(tmp_path / "root"))
    for path in ("../out", "a/../../out", "/etc/x"):
        with pytest.raises(StorageError, match="leads out"):
            storage.write(path, b"")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    storage = LocalStorage(str(tmp_path))
    storage.write("a", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert storage.names("") == ["a"]


def can_be_nameless(folder):
    try:
        os.close(os.open(folder, os.O_WRONLY | os.O_TMPFILE))
    except (AttributeError, OSError):
        return False
    return True


@pytest.mark.parametrize("nameless", [True, False])
def test_an_exported_file_has_its_name_when_it_is_whole(tmp_path, monkeypatch, nameless):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not can_be_nameless(tmp_path):
        pytest.skip("this file system has no files without a name")
    storage = LocalStorage(str(tmp_path))
    storage.export("masks/first", b"one")
    written, names = os.write, []

    def write(descriptor, data):
        names.append(sorted(os.listdir(tmp_path / "masks")))
        return written(descriptor, bytes(data)[:2])  # the rest is another call's

    monkeypatch.setattr(os, "write", write)
    storage.export("masks/new", b"three")
    assert len(names) == 3
    assert all("new" not in seen and (seen == ["first"]) == nameless for seen in names)
    storage.export("masks/first", b"two")
    assert (storage.read("masks/first"), storage.read("masks/new")) == (b"two", b"three")
    assert sorted(os.listdir(tmp_path / "masks")) == ["first", "new"]
    storage.write("masks/written", b"")
    assert (tmp_path / "masks/new").stat().st_mode == (tmp_path / "masks/written").stat().st_mode


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    storage = LocalStorage(str(tmp_path))
    storage.export("masks/a", b"old")
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for name in ("a", "b"):
        with pytest.raises(StorageError, match="No space left"):
            storage.export(f"masks/{name}", b"new")
    assert os.listdir(tmp_path / "masks") == ["a"]
    assert storage.read("masks/a") == b"old"


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [entry.path for entry in LocalStorage(str(tmp_path)).walk()] == ["a/x"]


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a file stands where a folder should"):
        LocalStorage(str(tmp_path / "file")).write("a", b"")


def test_urls():
    assert split_url("s3://b/k/x.png") == ("s3://b", "k/x.png")
    assert split_url("/a/b") == ("/", "a/b")
    with pytest.raises(JobError, match="local path or s3"):
        open_storage("gs://b/x")
    with pytest.raises(JobError, match="a bucket is missing"):
        open_storage("s3://")
