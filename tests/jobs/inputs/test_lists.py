"""Lists in each format."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw_images, jpeg, tar

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.storage.contract import Fault

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
    with pytest.raises(JobError, match="cannot be opened"):
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
