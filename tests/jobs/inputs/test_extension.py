"""A container, a storage scheme and a kind of input are each one module and one line of a table."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import pyarrow as pa
import pytest
from conftest import draw_images, jpeg, statistics

from maskfleet.jobs.errors import Changed, NotFound
from maskfleet.jobs.inputs import kinds
from maskfleet.jobs.inputs.containers import formats, spans
from maskfleet.jobs.inputs.containers.contract import Container, Member
from maskfleet.jobs.inputs.record import Record, tables
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage import schemes
from maskfleet.jobs.storage.contract import OBJECTS, Entry, Storage


class Piece(NamedTuple):
    name: str
    offset: int
    size: int


class Piles(Container[Piece]):
    """Files of concatenated images, each after a line with its name and size."""

    endings = (".pile",)
    place = spans.PLACE
    faults: ClassVar = {"cut_off": "the pile ends too early; write it again"}
    index = pa.schema([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
    entry = Piece

    def entries(self, file, listing):
        offset = 0
        while line := file.at(offset, 100).partition(b"\n")[0]:
            name, size = line.decode().split()
            offset += len(line) + 1
            yield Piece(name, offset, int(size))
            offset += int(size)

    def member(self, entry):
        if entry.size == 0:
            return Member(entry.name, {"offset": str(entry.offset)}, fault="cut_off")
        return Member(entry.name, {"offset": str(entry.offset), "size": str(entry.size)}, entry.size)

    def reader(self, files, members):
        return spans.SpanReader(files, members, damaged="cut_off")


class MemoryStorage(Storage):
    """Objects in the memory of this process, at `memory://`."""

    objects: ClassVar[dict[str, bytes]] = {}

    def __init__(self, root):
        self.root = root.rstrip("/")

    @classmethod
    def open(cls, url, options):
        return cls(url)

    def read(self, path, etag=None):
        if self.url(path) not in self.objects:
            raise NotFound(f"there is no object {path}")
        data = self.objects[self.url(path)]
        if etag not in (None, f"{hash(data)}"):
            raise Changed(f"{path} changed")
        return data

    def read_range(self, path, start, length, etag=None):
        return self.read(path, etag)[start : start + length]

    @contextmanager
    def opened(self, path, etag=None):
        with tempfile.TemporaryFile() as file:
            file.write(self.read(path, etag))
            file.seek(0)
            yield file

    def write(self, path, data):
        self.objects[self.url(path)] = bytes(data)

    def create(self, path, data):
        return self.objects.setdefault(self.url(path), data) is data

    def delete(self, path):
        self.objects.pop(self.url(path), None)

    def listed(self, path="", *, unlisted=None) -> Iterator[pa.Table]:
        skip = len(self.root) + 1
        paths = sorted(url[skip:] for url in self.objects if url.startswith(f"{self.url(path.rstrip('/'))}/"))
        if paths:
            yield pa.Table.from_pylist([self.entry(path)._asdict() for path in paths], OBJECTS)

    def names(self, path):
        skip = len(path) + 1 if path else 0
        return sorted({entry.path[skip:].split("/")[0] for entry in self.walk(path)})

    def entry(self, path):
        data = self.read(path)
        return Entry(path, len(data), f"{hash(data)}", 1.0)


class Drawings:
    """Drawn images: `drawings:3` are three."""

    searches = True

    def claims(self, location, selector):
        return "drawings:" in location

    def in_order(self, location):
        return True

    def files(self, location, selector):
        storage = selector.files.storage("memory://drawings")
        for number in range(int(location.rpartition(":")[2])):
            storage.write(f"{number}.jpg", jpeg(number))
        entries = list(storage.walk())
        yield from tables(Record(entry.path, storage.url(entry.path), entry.size, entry.etag) for entry in entries)


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setattr(MemoryStorage, "objects", {})


def job_of(input_, output, weights_file):
    return Job.of({"input": input_, "output": output, "weights": weights_file, "run": {"max_error_rate": 1}})


def test_a_new_container(tmp_path, weights_file, monkeypatch):
    monkeypatch.setattr(formats, "CONTAINERS", (*formats.CONTAINERS, Piles()))
    images = [("b.jpg", jpeg(0)), ("a.jpg", jpeg(1)), ("none.jpg", b"")]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.PILE").write_bytes(b"".join(f"{name} {len(data)}\n".encode() + data for name, data in images))
    draw_images(folder, 2)
    job = job_of(str(folder), str(tmp_path / "out"), weights_file)
    assert run(job).images == 5
    rows = {row["key"]: row for row in statistics(tmp_path / "out")}
    assert {key: row["error_class"] for key, row in rows.items()} == {
        "part-0/image-000.jpg": None,
        "part-1/image-001.png": None,
        "x.PILE/a.jpg": None,
        "x.PILE/b.jpg": None,
        "x.PILE/none.jpg": "cut_off",
    }
    end = (folder / "x.PILE").stat().st_size
    assert f"x.PILE, byte {end}: the pile ends too early; write it again" in rows["x.PILE/none.jpg"]["error_message"]
    assert verify(str(tmp_path / "out")).problems == []
    # The pile is not listed again, and its fault is final.
    monkeypatch.setattr(Piles, "entries", None)
    assert run(job).images == 0


def test_a_new_storage_scheme(tmp_path, weights_file, monkeypatch):
    monkeypatch.setitem(schemes.SCHEMES, "memory", MemoryStorage)
    source = schemes.open_storage("memory://plates")
    for path in draw_images(tmp_path / "in", 4).rglob("*.*"):
        source.write(f"in/{path.name}", path.read_bytes())
    assert run(job_of("memory://plates/in", "memory://plates/out", weights_file)).ok == 4
    output = schemes.open_storage("memory://plates/out")
    assert len(list(output.walk("masks"))) == 4
    assert verify("memory://plates/out").problems == []


def test_a_new_kind_of_input(tmp_path, weights_file, monkeypatch):
    monkeypatch.setitem(schemes.SCHEMES, "memory", MemoryStorage)
    monkeypatch.setattr(kinds, "KINDS", (Drawings(), *kinds.KINDS))
    assert [record.key for record in Source("drawings:2", output="/nowhere")] == ["0.jpg", "1.jpg"]
    assert run(job_of("drawings:3", str(tmp_path / "out"), weights_file)).ok == 3
