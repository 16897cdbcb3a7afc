import os
import time

import pytest
from conftest import draw_images, uploaded

from maskfleet.jobs.errors import Denied, StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.tools.doctor import places
from maskfleet.jobs.tools.doctor.contract import Subject

CHECKS = (places.input_rights, places.output_rights, places.commits, places.clock)


def subject(input_, output) -> Subject:
    return Subject(job=Job.of({"input": str(input_), "output": str(output), "weights": "nuclei"}))


def test_a_folder_that_works_is_ok_and_stays_as_it_was(images, tmp_path):
    found = [check(subject(images, tmp_path / "out")) for check in CHECKS]
    assert [finding.verdict for finding in found] == ["ok"] * 4, found
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_job_there_is_nothing_to_say():
    assert [check(Subject()) for check in CHECKS] == [None] * 4


@pytest.mark.s3
def test_a_bucket_that_works_is_ok_and_stays_as_it_was(tmp_path, bucket):
    uploaded(draw_images(tmp_path / "in", 2), bucket)
    found = [check(subject(f"{bucket}/in", f"{bucket}/out")) for check in CHECKS]
    assert [finding.verdict for finding in found] == ["ok"] * 4, found
    assert [entry.path for entry in open_storage(bucket).walk() if not entry.path.startswith("in/")] == []


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_a_problem(bucket):
    found = places.output_rights(subject(f"{bucket}/in", f"{bucket}-other/out"))
    assert found.verdict == "problem"
    assert "no such bucket" in found.text
    assert "create it" in found.remedy


def test_an_input_whose_first_images_cannot_be_read_is_judged_by_the_others(images, tmp_path):
    for number in range(3):
        (images / f"a{number}.png").symlink_to(tmp_path / "nowhere")
    assert "image-000.jpg" in places.input_rights(subject(images, tmp_path / "out")).text


class ReadOnly(LocalStorage):
    """A read-only folder. The tests may run as root, who may write everywhere."""

    def write(self, path, data):
        raise Denied(f"{path}: permission denied; check the owner and mode of its folder")


def test_a_read_only_output_is_a_problem(tmp_path):
    found = places.tried_rights(ReadOnly(str(tmp_path)))
    assert (found.verdict, found.text) == ("problem", found.text)
    assert found.text.startswith("put failed in ")
    assert "permission denied" in found.text
    assert "check the owner and mode" in found.remedy
    assert places.compared_clock(ReadOnly(str(tmp_path)), time.time) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_a_problem(tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    assert places.output_rights(subject(tmp_path, tmp_path / "out")).verdict == "problem"


def test_an_output_below_a_file_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    assert places.output_rights(subject(tmp_path, tmp_path / "file/out")).verdict == "problem"


class Undeletable(LocalStorage):
    def delete(self, path):
        raise Denied(f"{path}: access denied (AccessDenied); check the credentials and their permissions")


def test_an_output_without_the_right_to_delete_is_a_warning(tmp_path):
    found = places.tried_rights(Undeletable(str(tmp_path)))
    assert (found.verdict, "delete is refused" in found.text) == ("warning", True)
    assert ".maskfleet-doctor-" in found.remedy


class Ignoring(LocalStorage):
    """A storage that ignores the condition of `create`."""

    def create(self, path, data):
        self.write(path, data)
        return True


def test_a_storage_without_create_if_absent_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "open_storage", lambda url, profile=None: Ignoring(url))
    found = places.commits(subject(tmp_path, tmp_path / "out"))
    assert (found.verdict, "only the driver commits" in found.text) == ("warning", True)


def test_an_input_without_an_image_is_a_problem(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").touch()
    found = places.input_rights(subject(tmp_path / "in", tmp_path / "out"))
    assert (found.verdict, "no image" in found.text) == ("problem", True)


@pytest.mark.parametrize(
    ("seconds", "verdict", "words"),
    [
        (0, "ok", "differ by less than 60 s"),
        (30, "ok", "differ by less than 60 s"),
        (90, "warning", "ahead of"),
        (-90, "warning", "behind"),
        (1000, "problem", "ahead of"),
        (-86400, "problem", "behind"),
    ],
)
def test_the_clock_is_compared_with_the_storages(tmp_path, seconds, verdict, words):
    found = places.compared_clock(LocalStorage(str(tmp_path)), lambda: time.time() + seconds)
    assert (found.verdict, words in found.text) == (verdict, True), found
    assert list(tmp_path.iterdir()) == []


class Failing(LocalStorage):
    def names(self, path):
        raise StorageError("storage failed for 120 s (x); run the same command again once it is back")


def test_storage_that_fails_is_a_problem(tmp_path):
    found = places.tried_rights(Failing(str(tmp_path)))
    assert (found.verdict, "list failed" in found.text) == ("problem", True)
    assert list(tmp_path.iterdir()) == []
