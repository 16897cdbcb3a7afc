"""Coverage-guided fuzzing of the entry points for foreign bytes, by atheris (not a dependency: `pip install atheris`).

`python -m tests.faults.fuzz.guided TARGET CORPUS [libFuzzer's options]`, such as `-max_total_time=3600 -rss_limit_mb=3000`.
Targets: whole, rows, tar, parquet. An empty corpus folder is filled with sound files first. What is not a refusal by
name ends the run, and its file is kept.
"""

import gc
import io
import os
import sys
import tarfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["maskfleet", "PIL", "numpy.lib"]):
    from faults.fuzz.files import sound
    from PIL import Image

    from maskfleet.jobs.images.contract import Limits, Undecodable
    from maskfleet.jobs.images.decode import decode
    from maskfleet.jobs.images.row_reader import _Rows
    from maskfleet.jobs.inputs.containers import image_columns
    from maskfleet.jobs.inputs.containers.parquet_program import Reader
    from maskfleet.jobs.inputs.containers.parquet_protocol import Unreadable
    from maskfleet.jobs.inputs.containers.tar_members import members

MOST_PIXELS = 250_000


def whole(data: bytes) -> None:
    """Decode an image; the first byte chooses the options."""
    choice = data[0] if data else 0
    options = {"channels": (3, 1, 4, 3)[choice & 3], "upright": bool(choice & 4), "scale": 0.5 if choice & 8 else 1.0}
    try:
        pixels, size, _ = decode(data[1:], max_pixels=MOST_PIXELS, min_side=2, **options)
    except (Undecodable, MemoryError):
        return
    assert pixels.shape[2] == options["channels"]
    assert min(size) > 0


def rows(data: bytes) -> None:
    """Read an image in rows."""
    file = os.memfd_create("fuzz")
    try:
        os.write(file, data[1:])
        image = _Rows(file, Limits(3, max_pixels=MOST_PIXELS))
        for start in range(0, image.height, 40):
            image.read(start, min(40, image.height - start))
    except Exception:  # the program makes any error `corrupt`: crashes and hangs alone are found here
        return
    finally:
        os.close(file)


def tar(data: bytes) -> None:
    """List a tar archive: its members lie inside it, and distinct ones have distinct names."""
    names = set()
    for count, member in enumerate(members(lambda place, length: data[place : place + length], len(data), bool)):
        assert count <= len(data) // 512 + 2
        assert 0 <= member.offset <= len(data)
        if member.fault is None:
            assert member.offset + member.size <= len(data)
            assert member.name not in names
            names.add(member.name)


class _Here:
    """A file in memory, for the reader of Parquet."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_range(self, path, start, length, etag=None):
        return self._data[start : start + length]


def parquet(data: bytes) -> None:
    """Ask for everything that planning and a shard ask for."""
    # Arrow aborts on damaged sizes of a column. Its process survives that in a run, and this one would not.
    image_columns.Table.mean_size = lambda *_: 100.0
    reader = Reader(_Here(data))
    try:
        reader.answer("open", [len(data)])
        reader.answer("columns", [None])
        groups = reader._table.groups
        column, name, count, _ = reader.answer("images", [None]).header
        if name:
            reader.answer("values", [[name], 0, 9])
        for group in range(min(len(groups), 3)):
            reader.answer("rows", [column, group, 0, list(range(min(groups[group], 20)))])
    except Unreadable:
        return
    assert count >= 0


def tars() -> list[bytes]:
    """Return sound tar archives of three dialects."""
    archives = []
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=dialect) as archive:
            for name, size in (("a.png", 10), ("ä" * 40 + ".png", 600), ("a.png", 0)):
                member = tarfile.TarInfo(name)
                member.size = size
                archive.addfile(member, io.BytesIO(bytes(size)))
            member = tarfile.TarInfo("link.png")
            member.type, member.linkname = tarfile.SYMTYPE, "a.png"
            archive.addfile(member)
        archives.append(sink.getvalue())
    return archives


def tables() -> list[bytes]:
    """Return sound Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = []
    image = io.BytesIO()
    Image.new("L", (4, 4)).save(image, "PNG")
    values = [image.getvalue(), None, b"", b"x" * 300]
    columns = {
        "image": pa.array(values), "large": pa.array(values, pa.large_binary()), "view": pa.array(values, pa.binary_view()),
        "struct": pa.array([{"bytes": value, "path": "a.png"} for value in values]),
        "words": pa.array(values).dictionary_encode(), "list": pa.array([list(value or b"") for value in values], pa.list_(pa.uint8())),
    }  # fmt: skip
    for name, column in columns.items():
        for compression in ("none", "snappy", "zstd"):
            sink = io.BytesIO()
            table = pa.table({"key": ["a", "b", "c", "d"], name: column})
            pq.write_table(table, sink, compression=compression, row_group_size=2)
            files.append(sink.getvalue())
    return files


TARGETS = {
    "whole": (whole, lambda: [b"\0" + data for files in sound().values() for data in files]),
    "rows": (rows, lambda: [b"\0" + data for files in sound().values() for data in files]),
    "tar": (tar, tars),
    "parquet": (parquet, tables),
}
"""By name, the function under test and its first corpus."""


def main() -> None:
    """Fuzz the target named on the command line."""
    _, name, corpus, *options = sys.argv
    target, seeds = TARGETS[name]
    os.makedirs(corpus, exist_ok=True)
    if not os.listdir(corpus):
        for number, data in enumerate(seeds()):
            Path(corpus, f"seed-{number}").write_bytes(data)
    gc.freeze()
    atheris.Setup([sys.argv[0], corpus, *options], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
