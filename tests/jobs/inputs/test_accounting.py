"""Listed = rows + left alone, by the rule. Rows 9, 9b, 10, 10b, 11 and 14b of the odd inputs."""

import contextlib
import json
import os
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw_images, jpeg, statistics, tar
from typer.testing import CliRunner

from maskfleet.cluster.cli.main import app
from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.inputs.selector import Exclusions, ending_of
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.manifest import Frozen, Manifest
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.status import status
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage


def listed(location, **more):
    """Return the keys of a source, and what it left alone."""
    source = Source(str(location), output="/nowhere", **more)
    return [record.key for record in source], source.left_alone


def write(folder, *paths, data=b"x"):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def test_row_9b_files_left_alone_are_counted_by_ending(tmp_path):
    write(tmp_path, "a.PNG", "b.tar.gz", "c/d.TAR.GZ", "e.zip", "f.heic", "g.svg", "README", "c/.png", "x.")
    keys, left = listed(tmp_path)
    assert keys == ["a.PNG"]
    assert left == {".tar.gz": 2, "no ending": 2, ".zip": 1, ".heic": 1, ".svg": 1, "hidden": 1}


def test_odd_endings_stay_a_short_list(tmp_path):
    write(tmp_path, *(f"a.{number:06}" for number in range(100)), "b.\x1b[31m", "c.two words", "d.\n")
    _, left = listed(tmp_path)
    assert len(left) == 65
    assert sum(left.values()) == 103
    assert not any("\x1b" in reason or "\n" in reason for reason in left)
    assert [ending_of(name) for name in ("x.tgz", "a/.b", "a.d/b", ".tar.gz")] == [
        ".tgz",
        "no ending",
        "no ending",
        ".gz",
    ]


def test_row_10b_hidden_folders_are_left_alone_in_tars_too(tmp_path):
    write(tmp_path / ".snap", "in/a.png", "in/.ipynb_checkpoints/a-checkpoint.png", "in/.snapshot/x/b.png")
    write(tmp_path / ".snap", "in/.Trash-1000/files/c.png", "in/d/.hidden.png")
    keys, left = listed(tmp_path / ".snap/in")  # a dot above the input is nothing
    assert (keys, left) == (["a.png"], {"hidden": 4})
    tar(tmp_path / "x.tar", [("./a.jpg", b"x"), ("./.snapshot/b.jpg", b"x"), ("../c.jpg", b"x"), ("...d.jpg", b"x")])
    assert listed(tmp_path / "x.tar")[0] == ["x.tar/../c.jpg", "x.tar/a.jpg"]


@pytest.mark.slow
def test_other_members_of_a_tar_are_counted_also_from_its_index(tmp_path, weights_file):
    folder = tmp_path / "in"
    names = ("0.jpg", "0.json", "0.cls", "1.svg", "._0.jpg", ".snapshot/0.jpg")
    tar(folder / "x.tar", [(name, jpeg(0)) for name in names])
    job = Job.of({"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file})
    expected = {"hidden": 2, ".json": 1, ".cls": 1, ".svg": 1}
    assert [run(job).left_alone for _ in range(2)] == [expected, expected]
    assert listed(folder / "x.tar") == (["x.tar/0.jpg"], expected)


def test_row_9_a_dangling_link_and_a_link_to_itself_are_rows_called_missing(tmp_path, weights_file):
    folder = draw_images(tmp_path / "in", 2)
    (folder / "dangling.png").symlink_to("/nowhere/x.png")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "shard.tar").symlink_to("/nowhere/shard.tar")
    (folder / "notes.txt").symlink_to("/nowhere/notes.txt")
    job = Job.of(
        {"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file, "run": {"max_error_rate": 1}}
    )
    summary = run(job)
    assert (summary.listed, summary.left_alone) == (5, {".txt": 1})
    rows = {row["key"]: row["error_class"] for row in statistics(tmp_path / "out")}
    assert rows == {
        "dangling.png": "missing",
        "itself.png": "missing",
        "part-0/image-000.jpg": None,
        "part-1/image-001.png": None,
        "shard.tar": "missing",
    }
    # The night after, the image is there.
    (folder / "dangling.png").unlink()
    (folder / "dangling.png").write_bytes((folder / "part-1/image-001.png").read_bytes())
    assert (run(job).planned, open_output(str(tmp_path / "out")).failures().num_rows) == (
        {"changed": 1, "failed": 2},
        2,
    )


def test_row_10_an_unlisted_folder_is_counted_and_its_images_are_not_gone(tmp_path, weights_file, monkeypatch):
    folder = draw_images(tmp_path / "in", 4)
    write(folder, "lost+found/old.txt")
    job = Job.of({"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file})
    assert run(job).left_alone == {".txt": 1}
    scandir = os.scandir

    def refused(path):
        if os.path.basename(path) in ("lost+found", "part-1"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    summary = run(job)
    assert (summary.listed, summary.gone, summary.left_alone) == (2, 0, {"unlisted: permission denied": 2})
    monkeypatch.undo()
    (folder / "part-0/image-000.jpg").unlink()
    assert (run(job).gone, open_output(str(tmp_path / "out")).rows().num_rows) == (1, 3)


@pytest.mark.slow
def test_finding_3_a_tar_that_storage_cannot_read_is_a_row_and_its_images_are_not_gone(
    tmp_path, weights_file, monkeypatch
):
    folder = draw_images(tmp_path / "in", 2)
    for name in ("a.tar", "b.tar"):
        tar(folder / name, [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1))])
    table = {
        "input": str(folder),
        "output": str(tmp_path / "out"),
        "weights": weights_file,
        "run": {"max_error_rate": 1},
    }
    assert run(Job.of(table)).ok == 6
    read_range = LocalStorage.read_range

    def broken(self, path, *rest):
        if path.endswith("b.tar"):
            raise StorageError("b.tar: Input/output error")
        return read_range(self, path, *rest)

    monkeypatch.setattr(LocalStorage, "read_range", broken)
    os.utime(folder / "b.tar", (0, 0))
    summary = run(Job.of(table))
    assert (summary.listed, summary.errors, summary.gone) == (5, {"storage": 1}, 0)
    monkeypatch.setattr(LocalStorage, "answers", lambda self, path: False)
    with pytest.raises(StorageError, match="Input/output error"):
        listed(folder)


def test_row_14b_tables_of_others_beside_images_are_left_alone(tmp_path, weights_file):
    folder = draw_images(tmp_path / "in", 2)
    tar(folder / "00000.tar", [("0.jpg", jpeg(0)), ("0.json", b"{}")])
    table = pa.table({"url": ["https://x/0.jpg"], "key": ["0"], "status": ["success"]})
    for name in ("00000.parquet", "labels.parquet", "metadata.parquet", "part-0/metadata.parquet"):
        pq.write_table(table, folder / name)
    two = pa.table({"left": pa.array([jpeg(1)], pa.binary()), "right": pa.array([jpeg(2)], pa.binary())})
    pq.write_table(two, folder / "two.parquet")
    job = Job.of(
        {"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file, "run": {"max_error_rate": 1}}
    )
    summary = run(job)
    assert (summary.listed, summary.errors) == (4, {"no_column": 1})
    assert summary.left_alone == {"table without images": 4, ".json": 1}
    assert (run(job).images, listed(f"{folder}/*.parquet")[1]) == (0, {"not matched": 4, "table without images": 3})


def test_row_14b_a_table_without_images_is_an_error_if_the_input_names_it(tmp_path):
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(JobError, match="labels.parquet is known to hold URLs"):
        listed(tmp_path / "labels.parquet")
    (tmp_path / "list.txt").write_text("labels.parquet\n")
    assert listed(tmp_path / "list.txt") == (["labels.parquet/no_images"], {})


def test_row_11_excluded_images_are_counted_and_never_gone(tmp_path, weights_file):
    folder = draw_images(tmp_path / "in", 4)
    write(folder, "a.thumb.jpg", "part-0/seg.png", "thumbs/x/b.png", data=jpeg(0))
    tar(folder / "x.tar", [("0.jpg", jpeg(1)), ("0.seg.png", jpeg(2))])
    table = {"input": str(folder), "output": str(tmp_path / "out"), "weights": weights_file}
    assert run(Job.of(table)).ok == 9
    patterns = ["**/seg.png", "*.thumb.jpg", "thumbs/", "**/*.seg.png"]
    second = run(Job.of(table | {"exclude": patterns}))
    assert (second.images, second.listed, second.gone, second.left_alone) == (0, 5, 0, {"excluded": 4})
    # They stay as they are, and without the patterns they are known.
    assert open_output(str(tmp_path / "out")).rows().num_rows == 9
    third = run(Job.of(table))
    assert (third.images, third.listed, third.left_alone) == (0, 9, {})


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.thumb.jpg", ["a.thumb.jpg", "x/y/a.thumb.jpg", "a.thumb.jpg/x.png"], ["a.jpg", "thumb.jpg"]),
        ("seg.png", ["seg.png", "x/seg.png"], ["xseg.png", "seg.png2"]),
        ("**/seg.png", ["seg.png", "x/y/seg.png"], ["x/aseg.png"]),
        ("/a.png", ["a.png"], ["x/a.png"]),
        ("thumbs/", ["thumbs/a.png", "x/thumbs/a.png"], ["mythumbs/a.png"]),
        ("plate-?/thumbs", ["plate-1/thumbs/a.png"], ["x/plate-1/thumbs/a.png", "plate-12/thumbs/a.png"]),
        ("x.tar/[!a]*", ["x.tar/b.png"], ["x.tar/a.png"]),
    ],
)
def test_a_pattern_matches_whole_names_and_whole_folders(pattern, matching, others):
    exclusions = Exclusions([pattern])
    assert [key for key in (*matching, *others) if exclusions.match(key)] == matching


def test_row_11_patterns_apply_to_lists_and_single_tars_too(tmp_path):
    tar(tmp_path / "x.tar", [("a.png", b"x"), ("a.seg.png", b"x")])
    write(tmp_path, "b.png", "b.seg.png")
    (tmp_path / "list.txt").write_text("b.png\nb.seg.png\nx.tar\ngone.seg.png\n")
    assert listed(tmp_path / "x.tar", exclude=["*.seg.png"]) == (["x.tar/a.png"], {"excluded": 1})
    assert listed(tmp_path / "list.txt", exclude=["*.seg.png"]) == (["b.png", "x.tar/a.png"], {"excluded": 3})
    assert listed(f"{tmp_path}/*.*", exclude=["x.tar"]) == (["b.png", "b.seg.png"], {"excluded": 1, ".txt": 1})


def test_a_useless_pattern_is_refused():
    for pattern, message in (("", "must not be empty"), ("a**/b", "only as a whole part")):
        with pytest.raises(JobError, match=message):
            Job.of({"input": "in", "output": "out", "weights": "nuclei", "exclude": [pattern]})


def test_an_input_with_nothing_else_says_what_it_left_alone(tmp_path, weights_file):
    write(tmp_path / "in", "a.zip", "b.zip", "README")
    job = Job.of({"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file})
    with pytest.raises(JobError, match=r"no images in .*/in \(only 2 .zip, 1 no ending\); correct 'input'"):
        run(job)


def test_plan_run_and_status_show_what_is_left_alone(tmp_path, weights_file):
    folder = draw_images(tmp_path / "in", 2)
    write(folder, "a.zip", "b.zip", ".c/d.png", "e.seg.png")
    out = str(tmp_path / "out")
    given = ["--input", str(folder), "--output", out, "--weights", weights_file, "--exclude", "*.seg.png"]
    expected = {".zip": 2, "hidden": 1, "excluded": 1}
    shell = CliRunner()
    for _ in range(2):  # also a run with nothing to do
        done = shell.invoke(app, ["run", "--no-ray", *given])
        assert "left     4 files alone: 2 .zip, 1 hidden, 1 excluded" in done.stdout
    assert json.loads(shell.invoke(app, ["plan", *given, "--json"]).stdout)["left_alone"] == expected
    assert "2 .zip, 1 hidden, 1 excluded" in shell.invoke(app, ["plan", *given]).stdout
    found = status(out)
    record = json.loads((tmp_path / "out/runs" / found.run_id / "run.json").read_bytes())
    frozen = Manifest.stored(LocalStorage(out), found.run_id).frozen
    assert found.left_alone == record["left_alone"] == frozen.left_alone == expected
    assert "2 .zip, 1 hidden, 1 excluded" in shell.invoke(app, ["status", out]).stdout


def test_a_plan_of_an_older_version_is_still_read():
    older = {
        "parts": 1,
        "shards": 1,
        "images": 1,
        "shard_size": 1,
        "digest": "",
        "listed": 1,
        "bytes": 0,
        "whole": True,
    }
    assert Frozen(**older).left_alone == {}


def test_sockets_and_pipes_are_counted(tmp_path):
    write(tmp_path, "a.png", "b/c.png")
    os.mkfifo(tmp_path / "b/pipe.png")
    os.mkfifo(tmp_path / "x.tar")
    (tmp_path / "link.png").symlink_to("/dev/null")
    with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as server:
        server.bind("s.tif")
    assert listed(tmp_path) == (["a.png", "b/c.png"], {"socket, device or pipe": 4})
