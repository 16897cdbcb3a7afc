import os
from contextlib import suppress

import pytest

from maskfleet.jobs.errors import Changed
from maskfleet.jobs.storage import local_file


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_file_is_read_whole(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    etag = local_file.state(os.stat(tmp_path / "a"))
    assert local_file.read(str(tmp_path / "a")) == local_file.read(str(tmp_path / "a"), etag) == data


def test_short_reads_are_joined(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"0123456789")
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 3)))
    assert local_file.read(str(tmp_path / "a")) == b"0123456789"


def test_a_file_cut_short_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"0123456789")
    pieces = iter([b"012", b""])
    monkeypatch.setattr(os, "read", lambda *_: next(pieces))
    with pytest.raises(Changed):
        local_file.read(str(tmp_path / "a"))


def test_a_changed_file_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    etag = local_file.state(os.stat(tmp_path / "a"))
    os.utime(tmp_path / "a", ns=(1, 1))
    with pytest.raises(Changed, match="changed after planning"):
        local_file.read(str(tmp_path / "a"), etag)


@pytest.mark.parametrize("then", [b"longer than it was", b"short", b"as much"])
def test_a_file_written_to_during_the_read_is_refused(tmp_path, monkeypatch, then):
    (tmp_path / "a").write_bytes(b"as long")
    read = os.read

    def slowly(descriptor, size):
        monkeypatch.setattr(os, "read", read)
        data = read(descriptor, 2)
        (tmp_path / "a").write_bytes(then)
        os.utime(tmp_path / "a", ns=(1, 1))
        return data

    monkeypatch.setattr(os, "read", slowly)
    with pytest.raises(Changed):
        local_file.read(str(tmp_path / "a"))


def test_no_descriptor_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "a").write_bytes(b"1")
    for etag in (None, "another"):
        with suppress(Changed):
            local_file.read(str(tmp_path / "a"), etag)
    assert len(os.listdir("/proc/self/fd")) == before
