"""Names of masks in whole runs: kept over all nights, and never a reason for a run to end."""

import pytest
from conftest import jpeg, statistics, tar, tree

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.schemes import open_storage


def job_of(source, output, weights_file, *sets):
    table = {"input": str(source), "output": str(output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=4", "cluster.threads=1", "run.max_error_rate=1", *sets])


def masks_of(output):
    return {row["key"]: row["mask_member"] for row in statistics(output)}


def drawn(folder, *names):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed + len(name)))
    return folder


def test_finding_10_an_emptied_inbox_never_overwrites_the_masks_of_earlier_nights(tmp_path, weights_file):
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    run(job_of(drawn(inbox, "scan.jpeg"), out, weights_file))
    (inbox / "scan.jpeg").unlink()
    first = tree(out / "masks")
    run(job_of(drawn(inbox, "scan.jpg"), out, weights_file))
    assert masks_of(out) == {"scan.jpeg": "scan.png", "scan.jpg": "scan.jpg.png"}
    assert first.items() < tree(out / "masks").items()
    # A name stays, whatever has left and whoever is back.
    drawn(inbox, "scan.jpeg").joinpath("scan.jpg").unlink()
    run(job_of(inbox, out, weights_file))
    assert sorted(tree(out / "masks")) == ["scan.jpg.png", "scan.png"]
    assert verify(str(out)).problems == []


def test_finding_10_two_lists_into_one_output_do_not_collide(tmp_path, weights_file):
    drawn(tmp_path, "in/a.jpg", "in/a.jpeg")
    for name, line in (("one.txt", "in/a.jpg"), ("two.txt", "in/a.jpeg")):
        (tmp_path / name).write_text(f"{line}\n")
        run(job_of(tmp_path / name, tmp_path / "out", weights_file))
    assert masks_of(tmp_path / "out") == {"in/a.jpg": "in/a.png", "in/a.jpeg": "in/a.jpeg.png"}
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.parametrize("together", [True, False])
def test_finding_2_an_image_beside_a_folder_of_its_masks_name(tmp_path, weights_file, together):
    source, out = drawn(tmp_path / "in", "a.jpg"), tmp_path / "out"
    if not together:
        run(job_of(source, out, weights_file))
    drawn(source, "a.png/b.jpg")
    run(job_of(source, out, weights_file))
    assert sorted(tree(out / "masks")) == ["a%2Epng/b.png", "a.png"]
    assert verify(str(out)).problems == []


LONG = "x" * 252


def test_finding_2_a_name_that_the_output_cannot_hold_is_a_failed_row(tmp_path, weights_file):
    source, out = tmp_path / "in", tmp_path / "out"
    drawn(source, "b.jpg", f"{LONG}.jp", "x" * 251 + ".jpg")
    (source / f"{LONG}.jp").rename(source / ("x" * 250 + ".jpeg"))  # 255 bytes, and a mask of 254
    tar(source / "c.tar", [(f"{'y' * 300}.jpg", jpeg(1)), ("z.jpg", jpeg(2))])
    summary = run(job_of(source, out, weights_file))
    assert (summary.ok, summary.errors) == (4, {"mask_name": 1})
    (row,) = [row for row in statistics(out) if row["status"] == "failed"]
    assert (row["stage"], row["error_class"], row["key"]) == ("plan", "mask_name", f"c.tar/{'y' * 300}.jpg")
    assert row["error_message"] == (
        "the name of its mask is too long (it has 304 bytes between two slashes, and file systems hold 255); "
        "rename this image, or set masks.format to tar"
    )
    assert verify(str(out)).problems == []
    assert run(job_of(source, out, weights_file)).images == 0, "the same name fails once"
    summary = run(job_of(source, out, weights_file, "masks.format=tar"))
    assert (summary.images, summary.failed) == (1, 0), "the remedy works"
    assert verify(str(out)).problems == []


def test_finding_2_two_names_of_255_bytes_that_differ_in_their_ending(tmp_path, weights_file):
    names = ["x" * 251 + ending for ending in (".jpg", ".png")]
    summary = run(job_of(drawn(tmp_path / "in", *names), tmp_path / "out", weights_file))
    assert (summary.images, summary.errors) == (2, {"mask_name": 2})
    assert verify(str(tmp_path / "out")).problems == []


def test_names_differing_in_case_or_unicode_form_are_two_names(tmp_path, weights_file):
    names = ["A.jpg", "a.jpg", "\u00e9.jpg", "e\u0301.jpg"]
    assert run(job_of(drawn(tmp_path / "in", *names), tmp_path / "out", weights_file)).ok == 4
    assert len(tree(tmp_path / "out/masks")) == 4


def test_keys_of_a_bucket_have_1024_bytes_with_their_prefix():
    storage = open_storage("s3://bucket/some/prefix")
    assert storage.refused(f"masks/{'x' * 1006}") is None
    assert storage.refused(f"masks/{'x' * 1007}") == "its key has 1025 bytes, and S3 allows 1024"
    assert storage.refused("masks/" + "é" * 504) is not None


def test_paths_of_a_folder_have_4095_bytes():
    storage = open_storage("/some/folder")
    assert storage.refused("masks/" + "x/" * 2038) is None
    assert storage.refused("masks/" + "xx/" * 2038) == "its path has 6133 bytes, and Linux allows 4095"


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["png", "tar", "parquet", "rle", "none"])
def test_long_names_that_clash_cost_themselves_in_every_format(tmp_path, weights_file, masks):
    source, out = tmp_path / "in", tmp_path / "out"
    stems = ["n" * 251, "ü" * 125, "a.b"]
    drawn(source, *(f"{stem}{ending}" for stem in stems for ending in (".jpg", ".png")), "c.jpg")
    loose = masks == "png"
    summary = run(job_of(source, out, weights_file, f"masks.format={masks}"))
    assert (summary.images, summary.failed) == (7, 4 if loose else 0)
    assert summary.errors == ({"mask_name": 4} if loose else {})
    assert run(job_of(source, out, weights_file, f"masks.format={masks}")).images == 0
    assert verify(str(out)).problems == []
