"""Damaged containers from seeds: `PYTHONPATH=tests python -m faults.fuzzed_containers 1500` lists and reads that many."""

import io
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskfleet.jobs.inputs.containers.parquet_pool import ParquetPool
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.storage.contract import Fault

ABSURD = (
    b"\xff" * 8,
    b"\x7f" * 8,
    b"\x80" * 12,
    b"\0" * 16,
    b"-0000001000",
    b"77777777777",
    b"\xff\xff\xff\xff\x0f",
    b"99999999999",
)


def drawn(random_, size):
    return random_.integers(0, 256, size, np.uint8).tobytes()


@cache
def tars():
    """Sound tars of every format."""
    random_ = np.random.default_rng(0)
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
            for number in range(6):
                name = f"{'a' * (150 if kind != tarfile.USTAR_FORMAT and number % 2 else 9)}/{number}é.jpg"
                header = tarfile.TarInfo(name)
                data = drawn(random_, 700 * number)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
        found.append(sink.getvalue())
    return [*found, found[0] + found[1]]


@cache
def tables():
    """Sound Parquet files of many kinds."""
    random_ = np.random.default_rng(1)
    data = [drawn(random_, 50 * number) for number in range(20)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": each, "path": f"{number}.jpg"} for number, each in enumerate(data)], kind)
    plain = pa.array(data, pa.binary())
    forms = [
        (pa.table({"image": rows, "label": list(range(20))}), {"compression": "snappy", "row_group_size": 7}),
        (pa.table({"jpg": plain}), {"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0"}),
        (pa.table({"jpg": plain.dictionary_encode()}), {"compression": "gzip", "row_group_size": 5}),
        (
            pa.table({"jpg": plain}),
            {"compression": "none", "use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
        ),
        (pa.table({"jpg": plain, "n": ["x"] * 20}), {"compression": "lz4", "write_page_index": True}),
        (pa.table({"jpg": plain}), {"compression": "brotli", "store_schema": False, "data_page_size": 64}),
    ]
    found = []
    for table, settings in forms:
        sink = io.BytesIO()
        pq.write_table(table, sink, **settings)
        found.append(sink.getvalue())
    return found


def fuzzed(seed):
    """Return the ending and the bytes of a damaged container."""
    chance = random.Random(seed)
    ending = ".tar" if seed % 2 else ".parquet"
    whole = tars() if seed % 2 else tables()
    data = bytearray(chance.choice(whole))
    for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
        chance.choice((flipped, flipped, cut, spliced, emptied, absurd, absurd))(chance, data, whole)
    if ending == ".tar" and chance.random() < 0.7:
        with_checksums(data)
    return ending, bytes(data)


def place(chance, data):
    """Choose a place, more often in headers and footers than in images."""
    if not data:
        return 0
    if data[:4] == b"PAR1" and chance.random() < 0.7:
        return max(0, len(data) - 1 - int(chance.random() ** 2 * min(len(data), 1500)))
    if data[:4] != b"PAR1" and chance.random() < 0.7:
        return min(len(data) - 1, chance.randrange(0, len(data), 512) + chance.randrange(0, 350))
    return chance.randrange(len(data))


def flipped(chance, data, whole):
    if data:
        data[place(chance, data)] ^= 1 << chance.randrange(8)


def cut(chance, data, whole):
    start = place(chance, data)
    del data[start : start + chance.choice((1, 7, 512, 513, 5000, len(data)))]


def spliced(chance, data, whole):
    other = chance.choice(whole)
    start, length = chance.randrange(len(other)), chance.choice((1, 8, 512, 3000))
    at = place(chance, data)
    data[at : at + chance.choice((0, length))] = other[start : start + length]


def emptied(chance, data, whole):
    start = place(chance, data)
    length = min(chance.choice((4, 512, 1536, 4000)), len(data) - start)
    data[start : start + length] = bytes(length)


def absurd(chance, data, whole):
    number = chance.choice(ABSURD)
    start = place(chance, data)
    if data[:4] != b"PAR1" and chance.random() < 0.7:
        start = start // 512 * 512 + 124
    data[start : start + len(number)] = number


def with_checksums(data):
    """Make the checksums of a tar's headers right again."""
    for start in range(0, len(data) - 511, 512):
        block = data[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(block)


def outcomes(folder, seeds):
    """List and read damaged containers. Return the error class, or `ok`, of each key."""
    for seed in seeds:
        ending, data = fuzzed(seed)
        (folder / f"{seed}{ending}").write_bytes(data)
    source, inputs = Source(str(folder), output="/nowhere"), Inputs()
    records = list(source)
    reader = inputs.reader(records)
    found = {}
    for record in records:
        try:
            reader.read(record)
            found[record.key] = "ok"
        except Fault as fault:
            found[record.key] = fault.error_class
    started = inputs.files.companion(ParquetPool).started
    inputs.close()
    assert len(found) == len(records), "keys are not distinct"
    silent = set(seeds) - {int(key.partition(".")[0]) for key in found}
    assert not silent, f"no row for {sorted(silent)}"
    return found, started


def main():
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, started = outcomes(Path(folder), range(first, first + count))
    peaks = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(
        f"{count} containers in {time.monotonic() - began:.0f} s, no crash here, {started} processes read all of them"
    )
    print(f"peak memory {peaks[0]} MiB here, {peaks[1]} MiB in a reading process; rows {dict(Counter(found.values()))}")


if __name__ == "__main__":
    main()
