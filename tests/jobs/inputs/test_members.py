"""Images inside tars and Parquet files, from listing to statistics."""

import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg, statistics, tar, uploaded

from maskfleet.jobs.errors import Changed
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Selection
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.begin import start_plan
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.contract import Fault


def hugging_face(path, images, **more):
    """Write a Parquet file as `datasets` does."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([None if data is None else {"bytes": data, "path": name} for name, data in images], kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, "label": pa.array(range(len(images)))}), path, **more)
    return path


def plain(path, images, column="jpg"):
    pq.write_table(pa.table({"id": pa.array(range(len(images))), column: pa.array(images, pa.binary())}), path)
    return path


def mixed(folder):
    """Write images and each kind of container into one folder. Return the data of each image by key."""
    images = {number: jpeg(number) for number in range(12)}
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(images[0])
    (folder / "shard.tar-1.jpg").write_bytes(images[1])
    tar(
        folder / "shard.tar", [("b/2.jpg", images[2]), ("b/2.json", b"{}"), ("b/._2.jpg", b"x"), ("b/1.jpg", images[3])]
    )
    tar(folder / "sub" / "X.TAR", [("./4.png", images[4])])
    hugging_face(
        folder / "t.parquet", [("y/b.jpg", images[5]), ("a.jpg", images[6]), (None, images[7])], row_group_size=2
    )
    plain(folder / "u.parquet", [images[8], images[9]])
    pq.write_table(pa.table({"file_name": ["a.jpg"]}), folder / "metadata.parquet")
    (folder / "old.tar.gz").write_bytes(b"x")
    return {
        "a.jpg": images[0],
        "shard.tar-1.jpg": images[1],
        "shard.tar/b/1.jpg": images[3],
        "shard.tar/b/2.jpg": images[2],
        "sub/X.TAR/4.png": images[4],
        "t.parquet/000000000-b.jpg": images[5],
        "t.parquet/000000001-a.jpg": images[6],
        "t.parquet/000000002": images[7],
        "u.parquet/000000000": images[8],
        "u.parquet/000000001": images[9],
    }


def test_a_folder_may_hold_images_and_containers(tmp_path):
    expected = mixed(tmp_path / "in")
    source = Source(str(tmp_path / "in"), output="/nowhere")
    records = list(source)
    assert [record.key for record in records] == sorted(expected)
    reader = Inputs().reader(records)
    assert {record.key: reader.read(record) for record in records} == expected
    assert source.left_alone == {".tar.gz": 1, "table without images": 1, ".json": 1, "hidden": 1}
    assert {record.key: record.size for record in records}["shard.tar/b/1.jpg"] == len(expected["shard.tar/b/1.jpg"])
    assert list(source) == records
    for record in records:
        with Inputs().opened(record) as file:
            assert file.read() == expected[record.key]


@pytest.mark.s3
def test_a_bucket_may_hold_images_and_containers(tmp_path, bucket):
    expected = mixed(tmp_path / "in")
    storage = uploaded(tmp_path / "in", bucket)
    records = list(Source(f"{bucket}/in", output="/nowhere"))
    reader = Inputs().reader(records)
    assert {record.key: reader.read(record) for record in records} == expected
    storage.write("in/shard.tar", b"another")
    (changed,) = [record for record in records if record.key == "shard.tar/b/1.jpg"]
    with pytest.raises(Changed):
        Inputs().read(changed)


def test_containers_may_be_named_by_globs_or_alone(tmp_path):
    expected = mixed(tmp_path / "in")

    def keys(location):
        return [record.key for record in Source(f"{tmp_path}/in/{location}", output="/nowhere")]

    assert keys("*.tar") == ["shard.tar/b/1.jpg", "shard.tar/b/2.jpg"]
    assert keys("**/*.TAR") == ["sub/X.TAR/4.png"]
    assert keys("shard.tar") == ["shard.tar/b/1.jpg", "shard.tar/b/2.jpg"]
    assert keys("[tu].parquet") == sorted(key for key in expected if ".parquet" in key)
    assert keys("u.parquet") == ["u.parquet/000000000", "u.parquet/000000001"]


def test_neighbouring_members_share_requests(tmp_path, monkeypatch):
    images = [(f"{number:03}.jpg", jpeg(number)) for number in range(200)]
    tar(tmp_path / "in/x.tar", images[::-1])
    records = list(Source(str(tmp_path / "in"), output="/nowhere"))
    inputs = Inputs()
    storage, _ = inputs.files.found(records[0].url.partition("#")[0])
    asked = []
    whole = storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda path, start, n, etag: asked.append(n) or whole(path, start, n, etag)
    )
    monkeypatch.setattr("maskfleet.jobs.inputs.containers.spans._WINDOW", 64 * 2**10)
    reader = inputs.reader(records)
    assert [reader.read(record) for record in records] == [data for _, data in images]
    windows = -(-sum(len(data) for _, data in images) // (64 * 2**10))
    assert windows <= len(asked) <= windows + 2
    # A few members out of many do not cost the whole tar.
    asked.clear()
    monkeypatch.setattr("maskfleet.jobs.inputs.containers.spans._GAP", 4096)
    few = records[::50]
    reader = inputs.reader(few)
    assert [reader.read(record) for record in few] == [data for _, data in images[::50]]
    assert sum(asked) == sum(record.size for record in few)


def test_a_large_row_group_is_read_in_any_order_with_bounded_memory(tmp_path, monkeypatch):
    images = [(None, jpeg(number)) for number in range(100)]
    hugging_face(tmp_path / "in/x.parquet", images, compression="none", use_dictionary=False)
    records = list(Source(str(tmp_path / "in"), output="/nowhere"))
    monkeypatch.setattr("maskfleet.jobs.inputs.containers.parquet_files._KEPT_BYTES", 5000)
    for order in (range(100), range(99, -1, -1), [50, 3, 99, 4, 0]):
        inputs = Inputs()
        reader = inputs.reader([records[number] for number in order])
        for number in order:
            assert reader.read(records[number]) == images[number][1]


@pytest.fixture
def hostile(tmp_path):
    """Write nine good images among damaged ones. Return the folder and the offsets of two damaged headers."""
    folder = tmp_path / "in"
    damaged = tar(folder / "damaged.tar", [(f"{number}.jpg", jpeg(number)) for number in range(4)])
    data = bytearray(damaged.read_bytes())
    with tarfile.open(damaged) as archive:
        offset = archive.getmembers()[2].offset
    data[offset + 20] ^= 0xFF
    damaged.write_bytes(data)
    tar(folder / "names.tar", [("../../x.jpg", jpeg(1)), ("a.jpg", jpeg(2)), ("a.jpg", jpeg(3)), ("b.jpg", jpeg(4))])
    cut = tar(folder / "cut.tar", [("a.jpg", jpeg(5)), ("b.jpg", jpeg(6))])
    with tarfile.open(cut) as archive:
        second = archive.getmembers()[1].offset
    cut.write_bytes(cut.read_bytes()[: second + 700])
    pq.write_table(pa.table({"text": ["a"]}), folder / "no-images.parquet")
    (folder / "no.parquet").write_bytes(b"PAR1 and nothing more")
    hugging_face(folder / "rows.parquet", [("a.jpg", jpeg(7)), ("b.jpg", None), ("c.jpg", b"text"), ("d.jpg", jpeg(8))])
    return folder, offset, second


def test_damage_becomes_a_row_and_the_rest_is_segmented(hostile, tmp_path, weights_file):
    folder, offset, second = hostile
    before = set(tmp_path.parent.rglob("*"))
    job = Job.of(
        {"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file, "run": {"max_error_rate": 1}}
    )
    report = run(job)
    rows = {row["key"]: row for row in statistics(tmp_path / "out")}
    assert {key: row["error_class"] for key, row in rows.items()} == {
        "cut.tar/a.jpg": None,
        f"cut.tar/damaged@{second}": "damaged_tar",
        "damaged.tar/0.jpg": None,
        "damaged.tar/1.jpg": None,
        "damaged.tar/3.jpg": None,
        f"damaged.tar/damaged@{offset}": "damaged_tar",
        "names.tar/../../x.jpg": "unsafe_name",
        "names.tar/a.jpg": None,
        f"names.tar/a.jpg@{rows_offset(folder / 'names.tar', 2)}": "duplicate_name",
        "names.tar/b.jpg": None,
        "no.parquet/damaged_parquet": "damaged_parquet",
        "rows.parquet/000000000-a.jpg": None,
        "rows.parquet/000000001": "no_bytes",
        "rows.parquet/000000002-c.jpg": "unidentified",
        "rows.parquet/000000003-d.jpg": None,
    }
    assert f"damaged.tar, byte {offset}: no valid header" in rows[f"damaged.tar/damaged@{offset}"]["error_message"]
    assert (report.images, report.failed) == (15, 7)
    assert verify(str(tmp_path / "out")).problems == []
    assert set(tmp_path.parent.rglob("*")) - before == set((tmp_path / "out").rglob("*")) | {tmp_path / "out"}
    # All of these faults are final.
    assert run(job).images == 0


def test_a_truncated_tar_makes_a_run_incomplete_below_the_error_rate(tmp_path, weights_file):
    folder = tmp_path / "in"
    whole = tar(folder / "cut.tar", [(f"{number}.jpg", jpeg(number)) for number in range(40)])
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 8])
    (folder / "empty.tar").write_bytes(b"")
    one, two = tar(tmp_path / "1.tar", [("a.jpg", jpeg(1))]), tar(tmp_path / "2.tar", [("b.jpg", jpeg(2))])
    (folder / "two.tar").write_bytes(one.read_bytes() + two.read_bytes())
    job = Job.of(
        {"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file, "run": {"max_error_rate": 0.9}}
    )
    report = run(job)
    assert (report.failed, report.errors, report.damaged_containers) == (2, {"damaged_tar": 2}, 2)
    assert (report.status, report.exit_code) == ("incomplete", 1)
    keys = {row["key"] for row in statistics(tmp_path / "out") if row["status"] == "ok"}
    assert {"cut.tar/0.jpg", "two.tar/a.jpg", "two.tar/b.jpg"} <= keys
    assert verify(str(tmp_path / "out")).problems == []


def rows_offset(path, number):
    with tarfile.open(path) as archive:
        return archive.getmembers()[number].offset_data


def test_a_member_changed_since_planning_is_noticed(tmp_path):
    path = tar(tmp_path / "in/x.tar", [("a.jpg", jpeg(0))])
    (record,) = Source(str(tmp_path / "in"), output="/nowhere")
    tar(path, [("a.jpg", jpeg(1)), ("b.jpg", jpeg(2))])
    with pytest.raises(Changed):
        Inputs().read(record)


def test_the_column_may_be_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"left": pa.array([jpeg(0)], pa.binary()), "right": pa.array([jpeg(1)], pa.binary())})
    pq.write_table(table, folder / "x.parquet")
    (record,) = Source(str(folder), output="/nowhere", column="right")
    assert Inputs().read(record) == jpeg(1)
    for column in (None, "middle"):
        (record,) = Source(str(folder), output="/nowhere", column=column)
        with pytest.raises(Fault, match="name one with 'column'"):
            Inputs().read(record)


def test_the_plan_estimates_row_bytes_from_the_footer(tmp_path, weights_file):
    images = [(f"{number}.jpg", jpeg(number)) for number in range(40)]
    hugging_face(tmp_path / "in/t#row=1.parquet", images)
    tar(tmp_path / "in/x.tar", images)
    size = sum(len(data) for _, data in images)
    job = Job.of({"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file})
    assert start_plan(job, "f").planning.bytes == pytest.approx(2 * size, rel=0.1)
    limited = job.model_copy(update={"select": Selection(limit=10)})  # the first by key are rows
    assert start_plan(limited, "f").planning.bytes == pytest.approx(size / 4, rel=0.1)
