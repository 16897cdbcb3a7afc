"""What the end of a run says."""

import re
from types import SimpleNamespace

import pyarrow as pa
import pytest

from maskfleet.cluster.terminal import summary
from maskfleet.jobs.job.schema import Job

JOB = Job.of({"input": "in", "output": "/out", "weights": "nuclei"})


def isolation(means):
    return "\n".join(summary._isolation(SimpleNamespace(decoder_isolation=means)))


def test_means_that_were_not_to_be_had_are_said_once():
    assert isolation(["landlock", "seccomp"]) == ""
    assert isolation(None) == ""  # nothing was decoded
    assert "without landlock, which" in isolation(["seccomp"])
    assert "without landlock and seccomp, which" in isolation([])


def outcome(**values):
    speed = SimpleNamespace(
        forward_share=values.pop("share", 0.91),
        forward={"width": 256, "height": 256, "precision": "fp32", "seconds_per_image": 0.05},
        limit="network busy 98% of the time: it is the limit; add more of them to go faster",
    )
    run = {
        "run_id": "20261128T020000.000-1a2b3c", "status": "complete", "exit_code": 0, "images": 1200, "ok": 1190,
        "failed": 10, "errors": {"corrupt": 10}, "damaged_containers": 0, "exports_failed": 0, "export_failure": "",
        "left_alone": {}, "total_seconds": 15.0, "seconds": 8.8, "images_per_second": 136.4, "speed": speed,
        "start_seconds": {"plan": 0.4, "ray": 3.1, "worker": 2.5, "shard": 0.2}, "tuning": None,
        "short_of_memory": {}, "decoder_isolation": None, "warnings": [],
    }  # fmt: skip
    return SimpleNamespace(**run | values)


def said(capsys, **values):
    summary.summary(JOB, outcome(**values), seconds=18.0, loading=3.0)
    return capsys.readouterr()


def test_times_add_up_and_are_defined(capsys):
    text = said(capsys).out
    assert "run      20261128T020000.000-1a2b3c: complete\n" in text
    assert (
        "time     18 s; first masks after 9.2 s (PyTorch 3.0, plan 0.4, Ray 3.1, worker 2.5, first shard 0.2)" in text
    )
    assert "speed    136.4 images/s, from the start of the workers to the end" in text
    assert "network  91% of the bare forward pass (256×256 px in fp32) while the workers had images" in text
    assert text.count("images/s") == 1


def test_a_share_above_100_percent_is_explained(capsys):
    text = said(capsys, share=1.19).out
    assert "119" not in text
    assert "network  100% of the bare forward pass; it was timed at the start" in text


def test_the_query_counts_the_images_of_this_run_alone(capsys):
    assert "FROM '/out/stats/20261128T020000.000-1a2b3c/*.parquet'" in said(capsys).out


def test_warnings_are_printed(capsys):
    text = said(capsys, warnings=[{"check": "one_class", "message": "99% of the pixels are class 1; check the scale"}])
    assert "warning  99% of the pixels are class 1; check the scale\n" in text.out


@pytest.mark.parametrize(
    ("ok", "problem"),
    [
        (
            0,
            "maskfleet: every image failed, and run.max_error_rate allows 1.0%; mostly corrupt, such as a.png (cut off); ",
        ),
        (
            600,
            "maskfleet: 50.0% of the images failed, and run.max_error_rate allows 1.0%; mostly corrupt, such as a.png (",
        ),
    ],
)
def test_a_run_with_many_failures_says_which(ok, problem, capsys, monkeypatch):
    row = {"key": "a.png", "error_class": "corrupt", "error_message": "cut off"}
    monkeypatch.setattr("maskfleet.jobs.ledger.compacted.row_groups", lambda *_: [pa.Table.from_pylist([row])])
    assert said(capsys, ok=ok, failed=1200 - ok, exit_code=1, errors={"corrupt": 5, "missing": 1}).err.startswith(
        problem
    )


def test_numbers_have_no_stray_plural(capsys):
    text = said(capsys, images=1, ok=1, failed=0, errors={}, left_alone={".txt": 1}).out
    assert "images   1: 1 ok, 0 failed\n" in text
    assert "left     1 file alone: 1 .txt" in text
    assert not re.search(r"\b1 \w+s\b", text.replace("1 h", ""))
