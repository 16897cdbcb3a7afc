"""The report of real runs: at their end, again by a call, and of everything that can be missing."""

import json
import logging
import re
import shutil
from contextlib import suppress
from html.parser import HTMLParser

import pytest
from conftest import draw_images

from maskfleet.jobs.errors import JobError, Locked, MaskfleetError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.outputs import input_images
from maskfleet.jobs.outputs.gc import collect
from maskfleet.jobs.outputs.report import run as module
from maskfleet.jobs.outputs.report.run import run
from maskfleet.jobs.outputs.report.write import report, report_of_nights
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.storage.schemes import open_storage

HOSTILE = "<script>alert(1)<&'\"\u202e.png"


def job_of(folder, weights_file, *sets, output="out"):
    table = {"input": str(folder / "in"), "output": str(folder / output), "weights": weights_file, "name": "night"}
    return Job.of(table, ["run.shard_size=4", "run.max_error_rate=1", "cluster.threads=1", *sets])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights_file):
    """Output `out` of two nights: 15 images of which one is broken and one has a hostile name; then two more."""
    folder = tmp_path_factory.mktemp("report")
    images = draw_images(folder / "in", 13)
    shutil.copy(images / "part-1/image-001.png", images / HOSTILE)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n <b>broken")
    (images / "notes.txt").write_text("x")
    run(job_of(folder, weights_file))
    shutil.copy(images / "part-0/image-000.jpg", images / "new.jpg")
    run(job_of(folder, weights_file))
    return folder


def pages(folder, name="report.html", output="out"):
    return [path.read_text("utf-8") for path in sorted((folder / output / "runs").glob(f"*/{name}"))]


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.handlers, self.sources = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on") or name == "style"]
        self.sources += [value for name, value in attributes if name in {"src", "href"} and not value.startswith("#")]

    def handle_data(self, data):
        self.text += data


def test_every_run_writes_its_report(folder):
    first, second = map(Reader, pages(folder))
    for text in (
        "night, ",
        "Complete",
        "14 of 15 images have a mask, 1 failed.",
        "Exit code 0: complete.",
        "left alone: ",
    ):
        assert text in first.text
    assert f"maskfleet retry {folder / 'out'} --class decode" in first.text
    assert "There are no earlier nights" in first.text
    assert "1 earlier night to compare with" in second.text
    assert first.tags.count("img") > 20
    assert len(pages(folder, "figures.json")) == 2


def test_the_numbers_add_up(folder):
    text = pages(folder)[0]
    counts = [int(number.replace(",", "")) for number in re.findall(r'<td class="number">([\d,]+)</td></tr>', text)]
    names = re.findall(r'<tr class="(sum|part)"><th scope="row">([^<]*)', text)
    lines = list(zip(names, counts, strict=False))
    totals = [place for place, ((kind, _), _) in enumerate(lines) if kind == "sum"]
    found, listed, images = (lines[place][1] for place in totals)
    assert found == listed + 1  # notes.txt
    assert listed == images == 15
    assert sum(count for (kind, _), count in lines[totals[2] + 1 :] if kind == "part") == images


def test_nothing_from_storage_becomes_markup(folder):
    for text in pages(folder):
        reader = Reader(text)
        assert reader.tags.count("script") == 1
        assert reader.handlers == []
        assert all(source.startswith("data:") for source in reader.sources)
        assert "<b>broken" not in text
    assert HOSTILE in Reader(pages(folder)[0]).text


def test_the_report_is_part_of_the_output(folder):
    output = str(folder / "out")
    assert verify(output).problems == []
    assert collect(output, grace=0).paths == []


def test_it_is_made_again(folder):
    output = str(folder / "out")
    newest, first = (sorted((folder / "out/runs").iterdir())[place].name for place in (-1, 0))
    path, data = report(output, to_output=True)
    assert (folder / "out/runs" / newest / "report.html").read_bytes() == data
    assert path.endswith(f"{newest}/report.html")
    assert first in report(output, run_id=first, to_output=False)[1].decode()
    with pytest.raises(JobError, match="there is no run nope"):
        report(output, run_id="nope", to_output=False)
    with pytest.raises(JobError, match="there is no run in"):
        report(str(folder / "in"), to_output=False)


def test_nights_beside_each_other(folder):
    path, data = report_of_nights(str(folder / "out"), 7, to_output=True)
    assert path.endswith("/nights.html")
    assert pages(folder, "nights.html") == [data.decode()]
    text = Reader(data.decode()).text
    for words in ("night: the last 2 nights", "Failed images", "Confidence", "prices not set"):
        assert words in text
    assert "the last 1 night" in report_of_nights(str(folder / "out"), 1, to_output=False)[1].decode()
    with pytest.raises(JobError, match="no finished run with images"):
        report_of_nights(str(folder / "in"), 7, to_output=False)


def test_it_waits_for_no_run_unless_it_writes_to_the_output(folder):
    output = str(folder / "out")
    with locked(open_storage(output), "fail"):
        report(output, to_output=False)
        with pytest.raises(Locked):
            report(output, to_output=True)


def test_without_its_images_it_shows_the_masks_and_says_so(folder, tmp_path):
    for name in ("in", "out"):
        shutil.copytree(folder / name, tmp_path / name)
    for path in (tmp_path / "out/runs").glob("*/job.json"):
        record = json.loads(path.read_text())
        record["job"] |= {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
        path.write_text(json.dumps(record))
    shutil.move(folder / "in", folder / "away")
    try:
        first = sorted((tmp_path / "out/runs").iterdir())[0].name
        text = Reader(report(str(tmp_path / "out"), run_id=first, to_output=False)[1].decode()).text
    finally:
        shutil.move(folder / "away", folder / "in")
    assert "All pictures show the mask alone: the image no longer exists." in text


SLOW = pytest.mark.slow


@pytest.mark.parametrize("form", ["none", pytest.param("rle", marks=SLOW), pytest.param("parquet", marks=SLOW)])
def test_every_form_of_masks(folder, tmp_path, weights_file, form):
    (tmp_path / "in").symlink_to(folder / "in/part-0")
    run(job_of(tmp_path, weights_file, f"masks.format={form}"))
    (text,) = pages(tmp_path)
    assert "<h2>Images and masks</h2>" in text
    assert ('class="plain"' in text) == (form != "none")


def test_a_run_with_nothing_to_do_has_a_report(folder, tmp_path, weights_file):
    (tmp_path / "in").symlink_to(folder / "in/part-0")
    for _ in range(2):
        run(job_of(tmp_path, weights_file))
    assert "Nothing to do" in pages(tmp_path)[1]


def test_a_failure_to_write_it_never_changes_the_outcome(folder, tmp_path, weights_file, monkeypatch, caplog):
    (tmp_path / "in").symlink_to(folder / "in/part-0")

    def fails(*_args, **_given):
        raise ZeroDivisionError("broken")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "maskfleet"):
        patched.setattr(module, "gather", fails)
        assert run(job_of(tmp_path, weights_file)).status == "complete"
    assert pages(tmp_path) == []
    assert "could not be written: broken" in caplog.text
    report(str(tmp_path / "out"), to_output=True)
    assert len(pages(tmp_path)) == 1


def test_without_decoding_processes_it_has_no_pictures_and_says_so(folder, monkeypatch):
    def fails(*_args, **_given):
        raise MaskfleetError("no process starts")

    monkeypatch.setattr(input_images, "Decoders", fails)
    text = report(str(folder / "out"), to_output=False)[1].decode()
    assert "Without pictures: no process starts." in text
    assert "<h2>Distributions</h2>" in text


@pytest.mark.slow
def test_a_superseded_run_writes_none(folder, tmp_path, weights_file, monkeypatch):
    (tmp_path / "in").symlink_to(folder / "in/part-0")
    gather = module.gather

    def taken_over(storage, *args, **given):
        open_storage(str(tmp_path / "out")).create("lock/000009.x", b"{}")
        return gather(storage, *args, **given)

    monkeypatch.setattr(module, "gather", taken_over)
    monkeypatch.setattr(Fence, "_is_fresh", lambda _self: False)
    with suppress(Locked):  # the lock may notice it too
        run(job_of(tmp_path, weights_file))
    assert pages(tmp_path) == []


def test_an_unfinished_run_has_a_report(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    newest = sorted((tmp_path / "out/runs").iterdir())[0]
    (newest / "run.json").unlink()
    text = report(str(tmp_path / "out"), run_id=newest.name, to_output=False)[1].decode()
    assert "Unfinished" in text
    assert "15 of 15 images have an outcome so far" in text
