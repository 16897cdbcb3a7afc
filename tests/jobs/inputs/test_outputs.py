"""Outputs are never inputs, however they are written. Finding 12, and rows 4, 4b, 6, 15 and 16 of the odd inputs."""

import os
from pathlib import Path

import pytest
from conftest import draw_images, jpeg, uploaded

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.schemes import open_storage

GOOD = {"input": "in", "output": "out", "weights": "nuclei"}
IMAGES = ["part-0/image-000.jpg", "part-0/image-002.tif", "part-1/image-001.png"]


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path / "in", 3)


def listed(location, output="/nowhere", **more):
    source = Source(str(location), output=str(output), **more)
    return [record.key for record in source], source.left_alone


def job_of(input_, output, weights_file, **more):
    return Job.of({"input": str(input_), "output": str(output), "weights": weights_file, **more})


def write_output(folder, *, masks=1):
    """Write the files of an output that matter here."""
    for path in ("runs/20261128T010203.000-abcdef/job.json", "catalog/1.json", "stats/r/part-00000.parquet"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"{}")
    for number in range(masks):
        (folder / "masks/x").mkdir(parents=True, exist_ok=True)
        (folder / f"masks/x/{number}.png").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("form", ["{in_}/out", "file://{in_}/out", "{in_}/../in/out/", "{link}/out", "{in_}/link/out"])
def test_row_4b_the_own_output_is_no_input_however_it_is_written(folder, tmp_path, form):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    output = form.format(in_=folder, link=tmp_path / "link")
    assert listed(folder, output) == (IMAGES, {})
    write_output(Path(Job.of(GOOD | {"output": output}).output))
    assert listed(folder, output) == (IMAGES, {"own output": 4})


def test_finding_12_the_own_output_behind_a_link_is_no_input(folder, tmp_path, weights_file):
    (tmp_path / "out").mkdir()
    (folder / "results").symlink_to(tmp_path / "out")
    job = job_of(folder, tmp_path / "out", weights_file)
    first, second = run(job), run(job)
    assert (first.listed, second.listed, second.left_alone["own output"] > 5) == (3, 3, True)


def test_row_4_the_output_of_another_run_is_no_input(folder, weights_file):
    (folder / "results").mkdir()
    assert run(job_of(folder, folder / "results/first", weights_file)).ok == 3
    second = run(job_of(folder, folder / "second", weights_file))
    assert (second.ok, second.listed) == (3, 3)
    assert second.left_alone["other output"] >= 6


def test_images_beside_the_masks_of_another_output_are_inputs(tmp_path):
    write_output(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(jpeg(0))
    assert listed(tmp_path) == (["images/a.png"], {"other output": 4})


def test_folders_called_masks_are_inputs_unless_a_run_lies_beside(tmp_path, monkeypatch):
    for number in range(700):
        for name in ("images/a.png", "masks/b.png", "masks/c.png"):
            path = tmp_path / f"{number:03}/{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    write_output(tmp_path / "300a", masks=5)
    asked = []
    names = type(open_storage(str(tmp_path))).names
    monkeypatch.setattr(
        type(open_storage(str(tmp_path))), "names", lambda self, path: asked.append(path) or names(self, path)
    )
    keys, left = listed(tmp_path)
    assert (len(keys), left) == (2100, {"other output": 8})
    assert len(asked) <= 3  # the listing itself tells, but for the last folder of each of its tables


def test_row_16_output_and_input_may_not_be_the_same_folder(folder, tmp_path, weights_file):
    (tmp_path / "link").symlink_to(folder)
    for output in (folder, f"file://{folder}/", tmp_path / "link", f"{folder}/part-0/.."):
        with pytest.raises(JobError, match="input and output are the same folder, .*; write the masks elsewhere"):
            run(job_of(folder, output, weights_file))


@pytest.mark.parametrize("name", ["masks", "masks/deep", "runs", "runs/*/shards/**/*.tar", "stats/x.parquet"])
def test_row_16_an_input_inside_the_own_masks_or_records_is_refused(tmp_path, name):
    first = name.partition("/")[0]
    with pytest.raises(JobError, match=f"is in {first}/ of the job's own output .*; correct 'input' or 'output'"):
        listed(tmp_path / "out" / name, tmp_path / "out")


@pytest.mark.slow
def test_row_16_an_output_above_the_input_works(tmp_path, weights_file):
    folder = draw_images(tmp_path / "images", 3)
    job = job_of(folder, tmp_path, weights_file)
    assert [run(job).listed for _ in range(2)] == [3, 3]
    assert (tmp_path / "masks").is_dir()
    every = job_of(f"{tmp_path}/**/*.[jpt]*", tmp_path, weights_file)
    assert run(every).listed == 3


def test_a_list_may_not_smuggle_own_masks_in(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    write_output(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "list.txt").write_text("a.png\nout/masks/x/0.png\nlink/masks/x/0.png\na.png\n./a.png\n")
    keys, left = listed(tmp_path / "list.txt", tmp_path / "out")
    assert (keys, left) == (["a.png", "./a.png"], {"own output": 2, "repeated line": 1})


@pytest.mark.s3
def test_rows_4_and_16_hold_in_a_bucket(folder, bucket, weights_file):
    uploaded(folder, bucket)
    first = job_of(f"{bucket}/in/", f"{bucket}/in/first", weights_file)
    assert [run(first).listed for _ in range(2)] == [3, 3]
    second = run(job_of(f"{bucket.replace('s3:', 's3a:')}/in", f"{bucket}/in/second/", weights_file))
    assert (second.listed, second.left_alone["other output"] > 5) == (3, True)
    for output in (f"{bucket}/in", f"{bucket}/in/", f"{bucket.replace('s3:', 's3a:')}/in"):
        with pytest.raises(JobError, match="are the same folder"):
            run(job_of(f"{bucket}/in/", output, weights_file))
    with pytest.raises(JobError, match="is in masks/ of the job's own output"):
        run(job_of(f"{bucket}/in/first/masks/", f"{bucket}/in/first", weights_file))


@pytest.mark.s3
def test_row_6_a_prefix_with_brackets_is_no_glob(bucket):
    storage = open_storage(bucket)
    for path in ("run[12]/a.png", "run1/a.png", "run2/b.png", "run2/b[1].png"):
        storage.write(path, b"x")
    assert listed(f"{bucket}/run[12]")[0] == ["a.png"]
    assert listed(f"{bucket}/run[12]/*.png")[0] == ["a.png"]
    assert listed(f"{bucket}/run[2]/*")[0] == ["run2/b.png", "run2/b[1].png"]


def test_row_6_an_existing_path_is_no_glob(tmp_path, monkeypatch):
    for path in ("run[12]/a.png", "run1/b.png", "run2/c.png", "what?/d.png", "star*/x/e.png", "starfish/x/f.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    assert listed(tmp_path / "run[12]")[0] == ["a.png"]
    assert listed(tmp_path / "run[12]/*.png")[0] == ["a.png"]
    assert listed(tmp_path / "what?")[0] == ["d.png"]
    assert listed(tmp_path / "star*/*/*.png")[0] == ["x/e.png"]
    assert listed(tmp_path / "run[1-2]/*.png")[0] == ["run1/b.png", "run2/c.png"]
    (tmp_path / "run[12]/list[1].txt").write_text("a.png\n")
    assert listed(tmp_path / "run[12]/list[1].txt")[0] == ["a.png"]
    (tmp_path / "run[12]/empty[1]").mkdir()
    assert listed(tmp_path / "run[12]/empty[1]")[0] == []
    monkeypatch.chdir(tmp_path / "run[12]")
    assert os.getcwd().endswith("run[12]")
    for location in (".", "*.png"):
        assert listed(Job.of({"input": location, "output": "o", "weights": "nuclei"}).input)[0] == ["a.png"]


def test_finding_19_a_file_named_like_a_member_is_a_file(tmp_path, weights_file):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("x.parquet#row=1&column=a.png", "y.tar#offset=1&size=2#.png", "z#.png"):
        (folder / name).write_bytes(jpeg(0))
    summary = run(job_of(folder, tmp_path / "out", weights_file))
    assert (summary.ok, summary.failed) == (3, 0)
    (tmp_path / "list.txt").write_text("in/x.parquet#row=1&column=a.png\n")
    again = run(job_of(tmp_path / "list.txt", tmp_path / "out2", weights_file))
    assert (again.ok, again.failed) == (1, 0)
