"""Local folders only: atomic writes, links, paths."""

import os

import pytest

from maskfleet.jobs.errors import NotFound, StorageError
from maskfleet.jobs.storage import local_file
from maskfleet.jobs.storage.local import LocalStorage


def test_a_path_out_of_the_root_is_refused(tmp_path):
    storage = LocalStorage(str(tmp_path / "root"))
    for path in ("../out", "a/../../out", "/etc/x"):
        with pytest.raises(StorageError, match="points outside"):
            storage.write(path, b"")


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    storage = LocalStorage(str(tmp_path))
    storage.write("a", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert storage.names("") == ["a"]


def has_unnamed_files(folder):
    try:
        os.close(os.open(folder, os.O_WRONLY | os.O_TMPFILE))
    except (AttributeError, OSError):
        return False
    return True


@pytest.mark.parametrize("nameless", [True, False])
def test_an_exported_file_appears_only_when_complete(tmp_path, monkeypatch, nameless):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not has_unnamed_files(tmp_path):
        pytest.skip("this file system has no files without a name")
    storage = LocalStorage(str(tmp_path))
    storage.export("masks/first", b"one")
    written, names = os.write, []

    def write(descriptor, data):
        names.append(sorted(os.listdir(tmp_path / "masks")))
        return written(descriptor, bytes(data)[:2])  # a short write

    monkeypatch.setattr(os, "write", write)
    storage.export("masks/new", b"three")
    assert len(names) == 3
    assert all("new" not in seen and (seen == ["first"]) == nameless for seen in names)
    storage.export("masks/first", b"two")
    assert (storage.read("masks/first"), storage.read("masks/new")) == (b"two", b"three")
    assert sorted(os.listdir(tmp_path / "masks")) == ["first", "new"]
    storage.write("masks/written", b"")
    assert (tmp_path / "masks/new").stat().st_mode == (tmp_path / "masks/written").stat().st_mode


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    storage = LocalStorage(str(tmp_path))
    storage.export("masks/a", b"old")
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for name in ("a", "b"):
        with pytest.raises(StorageError, match="No space left"):
            storage.export(f"masks/{name}", b"new")
    assert os.listdir(tmp_path / "masks") == ["a"]
    assert storage.read("masks/a") == b"old"


def test_a_cycle_of_links_is_walked_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [entry.path for entry in LocalStorage(str(tmp_path)).walk()] == ["a/x"]


def test_the_error_names_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a file is in the place of a folder"):
        LocalStorage(str(tmp_path / "file")).write("a", b"")


def test_a_file_made_while_it_is_looked_for_is_missing_not_misnamed(tmp_path, monkeypatch):
    storage = LocalStorage(str(tmp_path))

    def made_meanwhile(file, etag):
        try:
            return open(file, "rb").read()
        finally:
            storage.create("tuning.json", b"{}")

    monkeypatch.setattr(local_file, "read", made_meanwhile)
    with pytest.raises(NotFound):
        storage.read("tuning.json")
