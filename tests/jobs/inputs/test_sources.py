import os

import pytest
from conftest import draw_images, tar

from maskfleet.jobs.errors import Changed, JobError, NotFound
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.schemes import open_storage


def keys(location, output="/nowhere/out"):
    return sorted(record.key for record in Source(str(location), output=str(output)))


def test_a_folder_yields_its_images_and_counts_the_rest(tmp_path):
    draw_images(tmp_path / "in", 3)
    for name in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / "in" / name).write_bytes(b"x")
    source = Source(str(tmp_path / "in"), output=str(tmp_path / "out"))
    found = list(source)
    assert [record.key for record in found] == ["part-0/image-000.jpg", "part-0/image-002.tif", "part-1/image-001.png"]
    assert found[0].url == str(tmp_path / "in/part-0/image-000.jpg")
    assert found[0].size == os.path.getsize(found[0].url)
    assert source.left_alone == {".txt": 1, "hidden": 1, ".db": 1}


def test_an_output_inside_the_input_is_not_listed(tmp_path):
    draw_images(tmp_path, 2)
    draw_images(tmp_path / "out" / "masks", 2)
    assert keys(tmp_path, tmp_path / "out") == ["part-0/image-000.jpg", "part-1/image-001.png"]


def test_a_glob_matches_whole_paths(tmp_path):
    draw_images(tmp_path, 8)
    assert keys(f"{tmp_path}/part-0/*.tif") == ["image-002.tif", "image-006.tif"]
    assert keys(f"{tmp_path}/**/*-00[12].*") == ["part-0/image-002.tif", "part-1/image-001.png"]
    assert keys(f"{tmp_path}/part-?/image-000.jpg") == ["part-0/image-000.jpg"]


def test_a_list_yields_each_line_once(tmp_path):
    draw_images(tmp_path / "in", 2)
    (tmp_path / "list.txt").write_text(
        f"# tonight\nin/part-0/image-000.jpg\n\n{tmp_path}/in/part-1/image-001.png\nin/part-0/image-000.jpg\ngone.png\n"
    )
    found = {record.key: record for record in Source(str(tmp_path / "list.txt"), output="/nowhere")}
    assert set(found) == {"in/part-0/image-000.jpg", f"{str(tmp_path)[1:]}/in/part-1/image-001.png", "gone.png"}
    assert found["gone.png"].size is None
    assert Inputs().read(found["in/part-0/image-000.jpg"]) == (tmp_path / "in/part-0/image-000.jpg").read_bytes()
    with pytest.raises(NotFound):
        Inputs().read(found["gone.png"])


def test_a_file_changed_since_planning_is_noticed(tmp_path):
    draw_images(tmp_path, 1)
    (record,) = Source(str(tmp_path), output="/nowhere")
    with open(record.url, "ab") as file:
        file.write(b"more")
    with pytest.raises(Changed):
        Inputs().read(record)


def test_a_name_outside_utf_8_is_a_fault(tmp_path):
    draw_images(tmp_path / "in", 1)
    picture = (tmp_path / "in/part-0/image-000.jpg").read_bytes()
    folder = os.fsencode(tmp_path / "in")
    tar(tmp_path / "a.tar", [("x.jpg", picture)])
    os.rename(os.fsencode(tmp_path / "a.tar"), folder + b"/c\xfe.tar")
    os.mkdir(folder + b"/b\xff")
    for name in (b"/b\xff/a.jpg", b"/\xe4.png", b"/z\\x.jpg"):
        with open(folder + name, "wb") as file:
            file.write(picture)
    found = list(Source(str(tmp_path / "in"), output="/nowhere"))
    assert [record.key for record in found] == [
        "\\xe4.png", "b\\xff/a.jpg", "c\\xfe.tar/bad_name", "part-0/image-000.jpg", "z\\x.jpg",
    ]  # fmt: skip
    for record in found[:3]:
        with pytest.raises(Fault, match="not UTF-8; rename it") as error:
            Inputs().read(record)
        assert error.value.error_class == "bad_name"
    assert [Inputs().read(record) for record in found[3:]] == [picture, picture]


@pytest.mark.parametrize("location", ["none", "none.txt", "gs://x/y"])
def test_a_missing_input_is_a_job_error(tmp_path, location):
    with pytest.raises(JobError):
        list(Source(location if "://" in location else str(tmp_path / location), output="/nowhere"))


def test_a_single_image_is_not_an_input(tmp_path):
    draw_images(tmp_path, 1)
    with pytest.raises(JobError, match="is a file; name its folder"):
        list(Source(str(tmp_path / "part-0/image-000.jpg"), output="/nowhere"))


@pytest.mark.s3
def test_a_bucket_has_folders_globs_and_lists(tmp_path, bucket):
    draw_images(tmp_path, 3)
    storage = open_storage(bucket)
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            storage.write(f"plates/{path.relative_to(tmp_path)}", path.read_bytes())
    storage.write("plates/notes.md", b"x")
    storage.write("lists/one.txt", f"{bucket}/plates/part-1/image-001.png\n../plates/part-0/none.png\n".encode())
    assert keys(f"{bucket}/plates/") == ["part-0/image-000.jpg", "part-0/image-002.tif", "part-1/image-001.png"]
    assert keys(f"{bucket}/plates/*/*.tif") == ["part-0/image-002.tif"]
    assert keys(f"{bucket}/lists/one.txt") == [
        "../plates/part-0/none.png",
        f"{bucket[5:]}/plates/part-1/image-001.png",
    ]
    (record,) = Source(f"{bucket}/plates/*/*.tif", output="/nowhere")
    assert Inputs().read(record) == (tmp_path / "part-0/image-002.tif").read_bytes()
