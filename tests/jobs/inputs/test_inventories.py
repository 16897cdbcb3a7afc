"""S3 Inventory, in the format of Amazon's documentation."""

import csv
import gzip
import hashlib
import io
import json
import tempfile
import zlib
from urllib.parse import quote_plus, unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw_images, statistics
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs import inventories
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.ranged import RangedFile
from maskfleet.jobs.storage.schemes import open_storage


def inventory(storage, bucket, kind, rows):
    """Write an inventory of (key, size, ETag, is latest) in two files. Return the URL of its manifest."""
    names, files = ["bucket", "key", "is_latest", "is_delete_marker", "size", "e_tag"], []
    for number, part in enumerate((rows[::2], rows[1::2])):
        key = f"inventory/data/{number}.{'csv.gz' if kind == 'CSV' else 'parquet'}"
        if kind == "CSV":
            text = "".join(f'"{bucket}","{quote_plus(key)}","{"true" if latest else "false"}","false","{size}","{etag}"\n'
                           for key, size, etag, latest in part)  # fmt: skip
            data = gzip.compress(text.encode())
        else:
            sink = io.BytesIO()
            columns = [[bucket] * len(part), [row[0] for row in part], [row[3] for row in part], [False] * len(part),
                       [row[1] for row in part], [row[2] for row in part]]  # fmt: skip
            pq.write_table(pa.table(columns, names), sink)
            data = sink.getvalue()
        storage.write(key, data)
        files.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": kind,
        "fileSchema": "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag"
        if kind == "CSV"
        else "message s3.inventory {…}",
        "files": files,
    }
    storage.write("inventory/2026-11-24T00-00Z/manifest.json", json.dumps(manifest).encode())
    return f"s3://{bucket}/inventory/2026-11-24T00-00Z/manifest.json"


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_inventory_is_listed_without_a_request_per_object(tmp_path, bucket, kind, weights_file, monkeypatch):
    draw_images(tmp_path / "in", 3)
    storage = open_storage(bucket)
    rows = []
    for path in sorted((tmp_path / "in").rglob("*.*")):
        name = f"plates/a +é/{path.name}"
        storage.write(name, path.read_bytes())
        entry = storage.entry(name)
        rows.append((name, entry.size, entry.etag, True))
    rows += [("plates/vanished.png", 9, "0" * 32, True), (rows[0][0], 1, "old", False), ("notes.md", 1, "x", True)]
    location = inventory(storage, bucket[5:], kind, rows)
    heads = []
    whole = type(storage).entry
    monkeypatch.setattr(type(storage), "entry", lambda self, path: heads.append(path) or whole(self, path))
    records = list(Source(location, output="/nowhere"))
    assert sorted(record[:4] for record in records) == sorted((r[0], f"{bucket}/{r[0]}", r[1], r[2]) for r in rows[:4])
    assert all(path.startswith("inventory/") for path in heads)
    if kind == "CSV":
        return
    job = {"input": location, "output": str(tmp_path / "out"), "weights": weights_file, "run": {"max_error_rate": 1}}
    report = run(Job.of(job))
    assert (report.images, report.failed) == (4, 1)
    errors = {row["key"]: row["error_class"] for row in statistics(tmp_path / "out")}
    assert errors == {row[0]: None for row in rows[:3]} | {"plates/vanished.png": "missing"}


def test_an_unusable_inventory_is_a_job_error(tmp_path):
    path = tmp_path / "manifest.json"
    for content, message in [
        ("[]", "is not a manifest"),
        ("{", "is not a manifest"),
        ('{"sourceBucket": "b"}', "is not a manifest"),
    ]:
        path.write_text(content)
        with pytest.raises(JobError, match=message):
            list(Source(str(path), output="/nowhere"))
    path.write_text(json.dumps({"sourceBucket": "b", "fileFormat": "ORC", "destinationBucket": "c", "files": []}))
    with pytest.raises(JobError, match="has the format ORC; configure it"):
        list(Source(str(path), output="/nowhere"))


def manifest_of(*keys):
    names = "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag"
    manifest = {"sourceBucket": "b", "destinationBucket": "c", "fileFormat": "CSV", "fileSchema": names}
    return json.dumps(manifest | {"files": [{"key": key} for key in keys]}).encode()


@pytest.fixture(scope="module")
def files():
    files = Files()
    yield files
    files.close()


def test_foreign_csv_is_parsed_in_another_process(tmp_path, files, monkeypatch):
    for module in ("pyarrow.csv.open_csv", "gzip.GzipFile"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("parsed here"))
    storage = LocalStorage(str(tmp_path))
    lines = b'"b","a%2Bb.png","true","false","3","e"\n' * 20_000
    storage.write("x.csv.gz", zlib.compress(lines, wbits=31))
    storage.write("cut.csv.gz", zlib.compress(lines, wbits=31)[:-40])
    storage.write("sizes.csv.gz", zlib.compress(lines.replace(b'"3"', b'"three"'), wbits=31))

    def listed(name):
        entry = storage.entry(name)
        return inventories.listed(
            manifest_of(name), "m", lambda _, key: RangedFile(storage, key, entry.size, entry.etag), files
        )[1]

    tables = list(listed("x.csv.gz"))
    assert sum(table.num_rows for table in tables) == 20_000
    assert tables[0].slice(0, 1).to_pylist() == [{"path": "a+b.png", "size": 3, "etag": "e", "modified": None}]
    for name in ("cut.csv.gz", "sizes.csv.gz"):
        with pytest.raises(JobError, match=f"file {name} is damaged; use another inventory"):
            list(listed(name))


_FIELDS = st.sampled_from(["", "true", "false"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.text(max_size=6), _FIELDS, _FIELDS, st.integers(0, 2**50) | st.none(), _FIELDS), max_size=9)
)
def test_a_csv_inventory_yields_the_newest_versions(files, rows):
    """Compared with Python's `csv` and the rule: newest versions, no delete markers, no folders."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for key, latest, marker, size, etag in rows:
        writer.writerow(["b", quote_plus(key), latest, marker, "" if size is None else size, etag])
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(folder)
        storage.write("x.csv.gz", gzip.compress(text.getvalue().encode()))
        entry = storage.entry("x.csv.gz")
        _, tables = inventories.listed(
            manifest_of("x.csv.gz"), "m", lambda _, key: RangedFile(storage, key, entry.size, entry.etag), files
        )
        found = [tuple(row.values())[:3] for table in tables for row in table.to_pylist()]
    text.seek(0)
    expected = [
        (unquote_plus(key), int(size) if size else None, etag or None)
        for _, key, latest, marker, size, etag in csv.reader(text)
        if latest != "false" and marker != "true" and not unquote_plus(key).endswith("/")
    ]
    assert found == expected
