"""Parquet files of foreign make: what cannot be read costs its rows, whatever it does to the process reading it."""

import base64
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from conftest import jpeg, statistics, uploaded

from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.inputs.containers import parquet_pool, parquet_process
from maskfleet.jobs.inputs.containers.parquet_pool import ParquetPool
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.contract import Fault


class KeyService(pe.KmsClient):
    """Keeps no secret."""

    def __init__(self, _):
        pe.KmsClient.__init__(self)

    def wrap_key(self, key, name):
        return base64.b64encode(key)

    def unwrap_key(self, wrapped, name):
        return base64.b64decode(wrapped)


def encrypted(path, table, column, *, plain_footer=True):
    """Write a table with an encrypted column."""
    settings = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": [column]}, plaintext_footer=plain_footer)
    properties = pe.CryptoFactory(KeyService).file_encryption_properties(pe.KmsConnectionConfig(), settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def images(count=3, **more):
    return pa.table({"id": list(range(count)), "jpg": pa.array([jpeg(n) for n in range(count)], pa.binary()), **more})


def read_all(folder, column=None):
    """List and read everything in a folder. Return the bytes, or the error class, of each key."""
    records = list(Source(str(folder), output="/nowhere", column=column))
    inputs = Inputs()
    reader = inputs.reader(records)
    found = {}
    for record in records:
        try:
            found[record.key] = reader.read(record)
        except Fault as fault:
            assert "\n" not in str(fault)
            found[record.key] = fault.error_class
    inputs.close()
    return found


@pytest.mark.parametrize("named", ["jpg", "id"])
def test_an_encrypted_column_with_a_plain_footer_is_a_row(tmp_path, named):
    encrypted(tmp_path / "in/a.parquet", images(), named)
    found = read_all(tmp_path / "in")
    if named == "jpg":
        assert found == {"a.parquet/encrypted": "encrypted"}
    else:
        assert found == {f"a.parquet/{number:09}": jpeg(number) for number in range(3)}


def test_an_encrypted_footer_is_a_row(tmp_path):
    encrypted(tmp_path / "in/a.parquet", images(), "jpg", plain_footer=False)
    assert read_all(tmp_path / "in") == {"a.parquet/encrypted": "encrypted"}


def test_encrypted_names_are_a_row(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": jpeg(0), "path": "a.jpg"}], kind)})
    encrypted(tmp_path / "in/a.parquet", table, "image.path")
    assert read_all(tmp_path / "in") == {"a.parquet/encrypted": "encrypted"}


def test_a_column_name_that_is_not_utf_8_is_a_row(tmp_path):
    path = tmp_path / "in/a.parquet"
    path.parent.mkdir()
    pq.write_table(images(ABCDEF=[1, 2, 3]), path, store_schema=False)
    data = path.read_bytes()
    assert b"ABCDEF" in data
    path.write_bytes(data.replace(b"ABCDEF", b"AB\xff\xfeEF"))
    assert read_all(tmp_path / "in") == {"a.parquet/damaged_parquet": "damaged_parquet"}


def test_a_name_that_is_not_utf_8_is_made_usable(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.binary())])
    table = pa.table(
        {"image": pa.array([{"bytes": b"x", "path": b"\xff.jpg"}, {"bytes": b"y", "path": b"b.jpg"}], kind)}
    )
    text = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = table["image"].combine_chunks()
    names = pa.Array.from_buffers(pa.string(), 2, column.field("path").buffers())
    column = pa.StructArray.from_arrays([column.field("bytes"), names], fields=list(text))
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": column}), tmp_path / "in/a.parquet")
    assert read_all(tmp_path / "in") == {"a.parquet/000000000-\\xff.jpg": b"x", "a.parquet/000000001-b.jpg": b"y"}


def test_rows_that_need_too_much_memory_are_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_process, "MEMORY", 64 * 2**20)
    (tmp_path / "in").mkdir()
    rows = pa.array([b"small", bytes(100 * 2**20), b"small"], pa.large_binary())
    pq.write_table(
        pa.table({"jpg": rows}),
        tmp_path / "in/a.parquet",
        compression="zstd",
        row_group_size=1,
        use_dictionary=False,
        write_statistics=False,
    )
    assert (tmp_path / "in/a.parquet").stat().st_size < 2**20
    assert list(read_all(tmp_path / "in").values()) == [b"small", "too_large_row", b"small"]


def test_more_rows_than_bytes_are_a_row(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000_000, pa.int32()), pa.array([b"x"], pa.binary()))
    pq.write_table(pa.table({"jpg": many}), tmp_path / "in/a.parquet")
    assert read_all(tmp_path / "in") == {"a.parquet/too_large_parquet": "too_large_parquet"}


LIST = pa.array([list(jpeg(0)), None], pa.list_(pa.uint8()))
VIEW = pa.array([jpeg(0), None], pa.binary_view())
DICTIONARY = pa.array([jpeg(0), None], pa.binary()).dictionary_encode()
NESTED = pa.array([{"image": {"bytes": jpeg(0)}}, None], pa.struct([("image", pa.struct([("bytes", pa.binary())]))]))


@pytest.mark.parametrize(
    ("values", "column"),
    [
        (LIST, "x"),
        (LIST.cast(pa.large_list(pa.uint8())), "x"),
        (VIEW, None),
        (DICTIONARY, None),
        (DICTIONARY, "x"),
        (NESTED, "x.image.bytes"),
        (NESTED, "x.image"),
        (pa.StructArray.from_arrays([LIST], ["bytes"]), None),
        (pa.StructArray.from_arrays([VIEW], ["jpg"]), "x.jpg"),
    ],
)
def test_images_may_be_of_every_type_of_bytes(tmp_path, values, column):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"x": values, "n": [1, 2]}), tmp_path / "in/a.parquet")
    place = "in" if column is None else "in/a.parquet"  # which might be a list
    assert list(read_all(tmp_path / place, column).values()) == [jpeg(0), "no_bytes"]


def test_a_column_may_have_a_dot_in_its_name(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"a.jpg": pa.array([b"x"], pa.binary()), "b": [b"y"]}), tmp_path / "in/a.parquet")
    assert list(read_all(tmp_path / "in", "a.jpg").values()) == [b"x"]


def damaged_group(path, groups=4, rows=20):
    """Write several row groups, the second one damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = images(groups * rows)
    pq.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="zstd")
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = os.urandom(chunk.total_compressed_size)
    path.write_bytes(data)


def test_a_damaged_row_group_costs_its_rows_and_no_others(tmp_path):
    damaged_group(tmp_path / "in/a.parquet")
    found = list(read_all(tmp_path / "in").values())
    assert found[:20] == [jpeg(number) for number in range(20)]
    assert found[20:40] == ["damaged_row"] * 20
    assert found[40:] == [jpeg(number) for number in range(40, 80)]


def test_a_process_killed_in_between_is_replaced(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(images(40), tmp_path / "in/a.parquet", row_group_size=10)
    records = list(Source(str(tmp_path / "in"), output="/nowhere"))
    inputs = Inputs()
    reader = inputs.reader(records)
    pool = inputs.files.companion(ParquetPool)
    for number, record in enumerate(records):
        if number % 10 == 0:
            for pid in pool.process_ids:
                os.kill(pid, signal.SIGKILL)
        assert reader.read(record) == jpeg(number)
    (pid,) = pool.process_ids
    inputs.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stopped_process_costs_its_time_and_no_more(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    pq.write_table(images(3), tmp_path / "in/a.parquet", row_group_size=1)
    records = list(Source(str(tmp_path / "in"), output="/nowhere"))
    inputs = Inputs()
    reader = inputs.reader(records)
    assert reader.read(records[0]) == jpeg(0)
    monkeypatch.setattr(parquet_process, "_SECONDS", 1.0)
    (pid,) = inputs.files.companion(ParquetPool).process_ids
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Fault) as fault:
        reader.read(records[1])
    assert fault.value.error_class == "slow_parquet"
    assert time.monotonic() - began < 5
    assert reader.read(records[2]) == jpeg(2)
    inputs.close()


def test_failing_storage_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/a.parquet"
    pq.write_table(images(3), path, row_group_size=1)
    records = list(Source(str(tmp_path / "in"), output="/nowhere"))
    inputs = Inputs()
    reader = inputs.reader(records)
    assert reader.read(records[0]) == jpeg(0)
    (pid,) = inputs.files.companion(ParquetPool).process_ids
    path.rename(tmp_path / "away")
    with pytest.raises(NotFound):
        reader.read(records[1])
    (tmp_path / "away").rename(path)
    assert reader.read(records[2]) == jpeg(2)
    assert inputs.files.companion(ParquetPool).process_ids == [pid]
    inputs.close()


def test_many_files_are_read_at_once_by_few_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_pool, "_MOST", 2)
    (tmp_path / "in").mkdir()
    for name in "abcdef":
        pq.write_table(images(20), tmp_path / f"in/{name}.parquet", row_group_size=7)
    records = list(Source(str(tmp_path / "in"), output="/nowhere"))
    inputs = Inputs()
    reader = inputs.reader(records)
    found = {}

    def read(records):
        for record in records:
            found[record.key] = reader.read(record)

    threads = [threading.Thread(target=read, args=(records[place::6],)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {f"{name}.parquet/{number:09}": jpeg(number) for name in "abcdef" for number in range(20)}
    assert len(inputs.files.companion(ParquetPool).process_ids) <= 2
    inputs.close()


def test_a_damaged_container_makes_a_run_incomplete_below_the_error_rate(tmp_path, weights_file):
    pq_folder = tmp_path / "in"
    pq_folder.mkdir()
    pq.write_table(images(30), pq_folder / "a.parquet")
    encrypted(pq_folder / "b.parquet", images(), "jpg")
    job = Job.of(
        {
            "input": str(pq_folder),
            "output": str(tmp_path / "out"),
            "weights": weights_file,
            "run": {"max_error_rate": 0.9},
        }
    )
    summary = run(job)
    assert (summary.images, summary.failed, summary.errors) == (31, 1, {"encrypted": 1})
    assert (summary.status, summary.exit_code, summary.damaged_containers) == ("incomplete", 1, 1)
    assert [row["error_class"] for row in statistics(tmp_path / "out") if row["status"] == "failed"] == ["encrypted"]


@pytest.mark.s3
def test_a_bucket_holds_damaged_files_too(tmp_path, bucket):
    encrypted(tmp_path / "in/a.parquet", images(), "jpg")
    damaged_group(tmp_path / "in/b.parquet", groups=3, rows=2)
    uploaded(tmp_path / "in", bucket)
    assert list(read_all(f"{bucket}/in").values()) == [
        "encrypted", jpeg(0), jpeg(1), "damaged_row", "damaged_row", jpeg(4), jpeg(5),
    ]  # fmt: skip


def test_a_file_that_kills_every_process_is_a_row(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    pq.write_table(images(3), tmp_path / "in/a.parquet")
    pq.write_table(images(3), tmp_path / "in/b.parquet")
    served, killed = parquet_process._Served.read, []

    def deadly(self, start, length):
        if self._file._path.endswith("a.parquet"):
            for pid in children():
                killed.append(pid)
                os.kill(pid, signal.SIGABRT)
        return served(self, start, length)

    monkeypatch.setattr(parquet_process._Served, "read", deadly)
    monkeypatch.setattr("maskfleet.jobs.inputs.sources._CONTAINERS_AHEAD", 1)
    found = read_all(tmp_path / "in")
    assert found.pop("a.parquet/damaged_parquet") == "damaged_parquet"
    assert list(found.values()) == [jpeg(number) for number in range(3)]
    assert len(set(killed)) == 3


def children():
    """Ids of the reading processes of this one."""
    here = f"PPid:\t{os.getpid()}\n"
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            if here in status.read_text() and b"parquet_program" in status.with_name("cmdline").read_bytes():
                yield int(status.parent.name)
