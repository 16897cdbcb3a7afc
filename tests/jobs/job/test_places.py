import os
import re
from datetime import date

import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job import places
from maskfleet.jobs.job.schema import Job

GOOD = {"input": "in", "output": "out", "weights": "nuclei"}


def test_local_paths_become_absolute_and_names_stay():
    job = Job.of({"input": "a/*.png", "output": "s3://b/c", "weights": "nuclei"})
    assert (job.input, job.output, job.weights) == (os.path.abspath("a/*.png"), "s3://b/c", ("nuclei",))
    assert Job.of(GOOD | {"weights": "w.safetensors"}).weights == (os.path.abspath("w.safetensors"),)


def test_a_url_with_credentials_is_refused():
    with pytest.raises(JobError, match="must not contain a user name and password"):
        Job.of(GOOD | {"input": "s3://id:secret@bucket/x"})


@pytest.mark.parametrize("name", ["X-Amz-Signature", "X-Goog-Signature", "sig", "Signature", "token"])
def test_a_signed_url_is_refused_and_not_shown(name):
    with pytest.raises(JobError, match="must not contain a signature") as error:
        Job.of(GOOD | {"input": f"s3://bucket/x?a=b&{name}=canary"})
    assert "canary" not in str(error.value)
    for place in ("s3://bucket/token=1/x", "s3://bucket/x?.png", "in/x?token=1"):
        assert Job.of(GOOD | {"input": place}).input.endswith(place)


def test_date_and_name_are_filled_in():
    table = {"input": "s3://b/{date}/x{no}", "output": "s3://b/out/{name}/{date}", "weights": "nuclei", "name": "n"}
    job = Job.of(table, day=date(2026, 11, 1))
    assert (job.input, job.output) == ("s3://b/2026-11-01/x{no}", "s3://b/out/n/2026-11-01")


def test_row_15_home_is_filled_in_and_a_variable_is_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    job = Job.of(GOOD | {"input": "~/in", "output": "~"})
    assert (job.input, job.output) == ("/home/ann/in", "/home/ann")
    for place, message in {
        "$HOME/x": "starts with a variable, and variables are not filled in; write the path",
        "${DATA}": "starts with a variable",
        "~nobody-here/x": "home folder of an unknown user; write the path",
        "file://server/share/x": "names the machine 'server'; write file:///",
    }.items():
        with pytest.raises(JobError, match=re.escape(message)):
            Job.of(GOOD | {"output": place})
    for place in ("./~", "./$HOME", "a~b", "a$b"):
        assert Job.of(GOOD | {"output": place}).output == os.path.abspath(place)


def test_row_12b_urls_of_files_become_paths_and_hadoops_schemes_s3():
    for url, place in {
        "file:///a%20b/c": "/a b/c",
        "file://localhost/a/../b/": "/b",
        "FILE:///a": "/a",
        "file:////a": "/a",
        "s3a://b/x%20y/": "s3://b/x%20y/",
        "S3://b/x": "S3://b/x",
    }.items():
        assert Job.of(GOOD | {"input": url}).input == place


def test_places_are_compared_and_not_their_names(tmp_path):
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real/out").symlink_to(tmp_path)
    real, link = f"{tmp_path}/real", f"{tmp_path}/link"
    assert places.below(f"{link}/inner", real) == "inner"
    assert places.below(f"{real}/inner/", f"{link}/") == "inner"
    assert places.below(link, real) == ""
    assert places.below(f"{real}/out/x", real) == "out/x"  # by its name
    assert places.below(f"{real}2", real) is None
    assert places.below("/a", "/") == "a"
    assert places.below("s3://b/x/y", "s3://b/") == "x/y"
    assert places.below("s3:///b/x//", "s3://b/x") == ""
    assert places.below("s3://b/xy", "s3://b/x") is None
    assert places.below("/b/x", "s3://b") is None
    assert places.below(f"file://{link}/inner", real) == "inner"
    assert places.below("s3a://b/x/y", "s3://b/x") == "y"
