"""Counting pages: by headers alone, and where a crash costs one file."""

import io

import numpy as np
import pytest
import tifffile
from conftest import jpeg, tar

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.planning.counting import Counting, CountingPool
from maskfleet.jobs.storage.local import LocalStorage


@pytest.fixture
def inputs():
    inputs = Inputs()
    yield inputs
    inputs.close()


def stack(count, side=16):
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as writer:
        for number in range(count):
            writer.write(np.full((side, side), number % 256, np.uint8), metadata=None, photometric="minisblack")
    return sink.getvalue()


def test_every_file_has_a_count_or_none(tmp_path, inputs, monkeypatch):
    monkeypatch.setattr(CountingPool, "module", "faults.counters")
    files = {
        "a.tif": (stack(3), 3), "b.tif": (stack(1), 1), "c.tif": (b"II*\0" + b"\xff" * 90, None), "d.tif": (b"", None),
        "e.tif": (b"DIE!" + stack(2), None), "f.gif": (jpeg(1), 1), "g.tiff": (stack(1200), 1200),
        "h.tif": (b"version https://git-lfs.github.com/spec/v1\n", None),
    }  # fmt: skip
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    records = [*Source(str(tmp_path), output="/nowhere"), Record("x.tif", str(tmp_path / "x.tif"), 9, None)]
    assert Counting(inputs).counts(records) == [*(count for _, count in files.values()), None]


def test_members_are_counted_by_their_bytes(tmp_path, inputs):
    tar(tmp_path / "x.tar", [("a.tif", stack(2)), ("b.tif", stack(1))])
    assert Counting(inputs).counts(list(Source(str(tmp_path), output="/nowhere"))) == [2, 1]


def test_a_header_is_all_that_is_read(tmp_path, inputs, monkeypatch):
    (tmp_path / "a.tif").write_bytes(stack(4, side=2048))
    read, asked = LocalStorage.read_range, []
    monkeypatch.setattr(LocalStorage, "read_range", lambda self, *args: asked.append(args[2]) or read(self, *args))
    assert Counting(inputs).counts(list(Source(str(tmp_path), output="/nowhere"))) == [4]
    assert sum(asked) < 2**20 < (tmp_path / "a.tif").stat().st_size


def test_storage_that_fails_for_every_file_ends_the_planning(tmp_path, inputs, monkeypatch):
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(stack(1))
    records = list(Source(str(tmp_path), output="/nowhere"))

    def failing(*_):
        raise StorageError("no route to the disk")

    monkeypatch.setattr(LocalStorage, "read_range", failing)
    monkeypatch.setattr(LocalStorage, "answers", lambda *_: False)
    with pytest.raises(StorageError, match="no route"):
        Counting(inputs).counts(records)
