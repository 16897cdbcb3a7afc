"""Lists in each format."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw_images, jpeg, statistics, tar

from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage

NAMES = ["part-0/image-000.jpg", "part-1/image-001.png", "gone.png"]


def keys(path, column=None):
    return [record.key for record in Source(str(path), output="/nowhere", column=column)]


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path, 2)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("label,URL\n1,{0}\n2,{1}\n2,{2}\n", None),
        ("{0}\n{1}\n\n{2}\n", None),
        ("place,label\n{0},1\n{1},2\n{2},3\n", "place"),
        ('url,"a,b"\r\n"{0}",x\r\n"{1}","y\nz"\r\n{2},\r\n', None),
        ("\ufeffpath\n{0}\n{1}\n{2}\n{0}\n", None),
    ],
)
def test_a_csv_list_is_read_in_order(folder, text, column):
    (folder / "list.csv").write_text(text.format(*NAMES))
    assert keys(folder / "list.csv", column) == NAMES


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ({"url": NAMES, "caption": ["a"] * 3}, None),
        ({"where": NAMES, "n": [1, 2, 3]}, None),
        ({"a": NAMES, "b": NAMES}, "b"),
    ],
)
def test_a_parquet_list_is_read_in_order(folder, table, column):
    pq.write_table(pa.table(table), folder / "list.parquet", row_group_size=2)
    assert keys(folder / "list.parquet", column) == NAMES


def test_an_unusable_list_is_a_job_error(folder):
    (folder / "list.csv").write_text("a,b\n1,2\n")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), folder / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        with pytest.raises(JobError, match="there are: a, b.; name it with 'column'"):
            keys(folder / name)
        with pytest.raises(JobError, match="has no column 'c'"):
            keys(folder / name, "c")
    (folder / "list.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(JobError, match="not UTF-8"):
        keys(folder / "list.txt")
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(JobError, match="cannot be read to its end"):
        keys(folder / "broken.parquet")


def test_a_list_may_name_tars(tmp_path):
    tar(tmp_path / "x.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))])
    (tmp_path / "list.txt").write_text("x.tar\nmissing.tar\n")
    assert keys(tmp_path / "list.txt") == ["x.tar/a.jpg", "x.tar/b.jpg", "missing.tar"]


def test_a_list_may_not_name_members(tmp_path):
    (tmp_path / "list.txt").write_text("x.tar#offset=512&size=9\n")
    (record,) = Source(str(tmp_path / "list.txt"), output="/nowhere")
    assert record.key == "x.tar#offset=512&size=9"
    with pytest.raises(Fault, match="names a part of a file; name the file to process all of it"):
        Inputs().read(record)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("label;URL\n1;{0}\n2;{1}\n3;{2}\n", None),
        ("\ufeffpath\tlabel\r\n{0}\ta,b\r\n{1}\tc\r\n{2}\t\r\n", None),
        ('"place";"label"\n"{0}";"1;2"\n"{1}";"2"\n"{2}";"3"\n', "place"),
        ("url\n{0}\n{1}\n{2}\n", None),
    ],
)
def test_row_12_a_csv_list_may_be_separated_by_semicolons_or_tabs(folder, text, column):
    (folder / "list.csv").write_text(text.format(*NAMES))
    assert keys(folder / "list.csv", column) == NAMES


def test_row_12_a_separator_is_never_guessed(tmp_path):
    for name in ("a;1.png", "b;2.png"):
        (tmp_path / name).write_bytes(jpeg(0))
    (tmp_path / "list.csv").write_text("a;1.png\nb;2.png\n")
    assert keys(tmp_path / "list.csv") == ["a;1.png", "b;2.png"]
    for separator, shown in ((";", "';'"), ("\t", r"'\\t'")):
        (tmp_path / "two.csv").write_text(f"a.png{separator}1\nb.png{separator}2\n")
        with pytest.raises(JobError, match=f"separated by {shown}, but no header names .*; add a header"):
            keys(tmp_path / "two.csv")


def test_row_12b_finding_4_each_line_that_cannot_be_used_is_a_row_with_the_reason(tmp_path, weights_file):
    folder = draw_images(tmp_path / "in", 2)
    for name in ("a b.png", "c%20d.png"):
        (folder / name).write_bytes(jpeg(0))
    (folder / "itself.png").symlink_to("itself.png")
    lines = {
        "part-0/image-000.jpg": None,
        f"file://{folder}/part-1/image-001.png": None,
        f"file://localhost{folder}/a%20b.png": None,
        f"file://{folder}/c%2520d.png": None,
        "https://example.org/x.png": "bad_url",
        "s3://bucket": "bad_url",
        "https://example.org/x.tar": "bad_url",
        "file://server/x.png": "bad_url",
        "nul\0.png": "missing",
        "x" * 300 + ".png": "mask_name",  # no mask could have its name either
        "part-0/image-000.jpg/x.png": "missing",
        "itself.png": "missing",
        "gone.png": "missing",
        "part-0": "missing",
        "x.tar#offset=1&size=2": "part_of_file",
    }
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    job = Job.of(
        {
            "input": f"{folder}/list.txt",
            "output": f"{tmp_path}/out",
            "weights": weights_file,
            "run": {"max_error_rate": 1},
        }
    )
    summary = run(job)
    rows = {row["key"]: row for row in statistics(tmp_path / "out")}
    expected = {re.sub(r"^[a-z0-9]+://|^/+", "", line): reason for line, reason in lines.items()}
    assert {key: row["error_class"] for key, row in rows.items()} == expected
    assert (summary.ok, summary.failed) == (4, 11)
    assert "example.org/x.png: storage must be a local path or s3://" in rows["example.org/x.png"]["error_message"]
    assert "names no file" in rows["bucket"]["error_message"]
    assert "names the machine 'server'" in rows["server/x.png"]["error_message"]


def test_row_12b_a_url_and_a_path_of_one_file_are_one_image(tmp_path):
    (tmp_path / "a.png").write_bytes(jpeg(0))
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.png\nfile://{tmp_path}/a.png\n")
    source = Source(str(tmp_path / "list.txt"), output="/nowhere")
    assert (len(list(source)), source.left_alone) == (1, {"repeated line": 1})


@pytest.mark.s3
def test_row_12b_hadoops_scheme_is_s3(tmp_path, bucket):
    open_storage(bucket).write("a.png", jpeg(0))
    (tmp_path / "list.txt").write_text(f"{bucket.replace('s3:', 's3a:')}/a.png\n{bucket}/a.png\n{bucket}\n")
    source = Source(str(tmp_path / "list.txt"), output="/nowhere")
    records = list(source)
    assert [(record.key, record.size) for record in records] == [
        (f"{bucket[5:]}/a.png", len(jpeg(0))),
        (bucket[5:], None),
    ]
    assert source.left_alone == {"repeated line": 1}
    assert Inputs().read(records[0]) == jpeg(0)


def refusing(monkeypatch, error, readable=()):
    """Let storage refuse all files but some."""
    entry = LocalStorage.entry

    def refused(self, path):
        if not path.endswith(readable or ("list.txt",)):
            raise error
        return entry(self, path)

    monkeypatch.setattr(LocalStorage, "entry", refused)


def test_row_1b_a_line_that_storage_refuses_is_a_record_unless_all_are(folder, monkeypatch):
    (folder / "list.txt").write_text("\n".join(NAMES))
    refusing(monkeypatch, StorageError("the disk is broken"), ("list.txt", "image-001.png"))
    records = list(Source(f"{folder}/list.txt", output="/nowhere"))
    assert [(record.key, record.size is None) for record in records] == list(
        zip(NAMES, (True, False, True), strict=True)
    )
    monkeypatch.undo()
    refusing(monkeypatch, StorageError("the disk is broken"))
    with pytest.raises(StorageError, match="disk is broken"):
        keys(folder / "list.txt")
