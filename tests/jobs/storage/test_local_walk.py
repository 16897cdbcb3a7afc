"""Listing a local folder: one bad entry never ends it. Finding 19, and rows 9 and 10 of the odd inputs."""

import os

import pytest

from maskfleet.jobs.errors import Denied
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.local_file import state


def listed(folder, unlisted=None):
    return [path for table in LocalStorage(str(folder)).listed(unlisted=unlisted) for path in table["path"].to_pylist()]


def forbid(monkeypatch, folder):
    """Refuse to read a folder, also for root."""
    scandir = os.scandir

    def scan(path):
        if os.path.basename(path) == folder:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_finding_19_an_unreadable_lost_and_found_is_left_out_and_reported(tmp_path, monkeypatch):
    for path in ("a.png", "lost+found/x.png", "z/b.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"1")
    forbid(monkeypatch, "lost+found")
    found = {}
    assert listed(tmp_path, found.__setitem__) == ["a.png", "z/b.png"]
    assert found == {"lost+found": "permission denied; check its permissions"}
    with pytest.raises(Denied, match=r"cannot read folder .*lost\+found: permission denied"):
        listed(tmp_path)


def test_a_folder_that_cannot_be_read_at_all_raises_even_so(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    forbid(monkeypatch, "in")
    with pytest.raises(Denied, match="cannot read folder"):
        listed(tmp_path / "in", {}.__setitem__)


def test_finding_4_a_link_to_itself_and_a_dangling_link_are_listed_in_their_turn(tmp_path):
    for name in ("a.png", "z.png"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    entries = list(LocalStorage(str(tmp_path)).walk())
    assert [(entry.path, entry.size) for entry in entries] == [
        ("a.png", 1), ("dangling.png", 0), ("itself.png", 0), ("z.png", 1),
    ]  # fmt: skip
    assert entries[0].etag == state(os.stat(tmp_path / "a.png"))
    # Once the file is there, its etag differs: the image is planned again.
    (tmp_path / "nowhere").write_bytes(b"1")
    later = {entry.path: entry.etag for entry in LocalStorage(str(tmp_path)).walk()}
    assert later["dangling.png"] != entries[1].etag


def test_files_in_a_folder_that_may_be_read_but_not_searched_are_listed(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"1")

    class Item:
        name, path = "a.png", f"{tmp_path}/a.png"

        def is_dir(self):
            return False

        def is_symlink(self):
            return False

        def stat(self):
            raise PermissionError(13, "Permission denied")

    class Found(list):
        def __enter__(self):
            return self

        def __exit__(self, *_): ...

    monkeypatch.setattr(os, "scandir", lambda _: Found([Item()]))
    assert listed(tmp_path) == ["a.png"]


def test_row_10_a_deep_tree_is_walked_and_a_path_too_long_is_reported(tmp_path):
    (tmp_path / "z.png").write_bytes(b"1")
    here = os.open(tmp_path, os.O_RDONLY)
    for depth in range(2100):  # 1,100 levels are walked; the path ends at 4,096 bytes
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        if depth in (1099, 2099):
            os.close(os.open("x.png", os.O_CREAT, dir_fd=here))
    os.close(here)
    found = {}
    assert listed(tmp_path, found.__setitem__) == ["d/" * 1100 + "x.png", "z.png"]
    assert list(found.values()) == ["its path is too long; move it up"]
    with os.scandir(tmp_path) as entries:  # pytest's own removal recurses
        assert len(list(entries)) == 2
    _remove(tmp_path)


def _remove(folder):
    """Remove a deep tree: move each level up before it is removed."""
    while os.path.isdir(folder / "d"):
        if os.path.exists(folder / "d" / "x.png"):
            os.unlink(folder / "d" / "x.png")
        if os.path.isdir(folder / "d" / "d"):
            os.rename(folder / "d" / "d", folder / "e")
        os.rmdir(folder / "d")
        if os.path.isdir(folder / "e"):
            os.rename(folder / "e", folder / "d")
