import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from browsers import FEW, chromium, opened, violations
from conftest import decoded_pairs
from PIL import Image

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.training.gate import Verdict
from maskfleet.jobs.training.record import ClassScores, Evaluation, TrainingRecord, ValidationImage
from maskfleet.jobs.training.report import Example, page, worst_median_best
from maskfleet.jobs.training.scores import KINDS, Interval


def record(*, comparable=True):
    images = [
        ValidationImage(key=f"{number}.png", base=0.5 if comparable else None, new=0.6, others=0.1)
        for number in range(6)
    ]
    intervals = {kind: Interval(mean=0.6, low=0.5, high=0.7) for kind in KINDS}
    scores = Evaluation(images=6, dice=0.6, iou=0.5, classes=[ClassScores(number=1, value=255, intervals=intervals)])
    return TrainingRecord(
        id="abc", weights="weights.safetensors", identity={}, trained_on=20, new=scores,
        base=scores if comparable else None, validation=images, finished="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def rows(count=900):
    return [
        {"step": step, "loss": 1 / step, "dice": 0.5 + step / 2000 if step % 100 == 0 else None}
        for step in range(1, count + 1)
    ]


def examples(*, comparable=True):
    pair = replace(decoded_pairs()[0], key="<b>.png")
    base = pair.truth if comparable else None
    return [Example(title="worst", pair=pair, base=base, new=1 - pair.truth, dice=0.0)]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.text, self.tags = [], "", set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        if tag == "img":
            data = base64.b64decode(found["src"].removeprefix("data:image/webp;base64,"))
            self.images.append(np.asarray(Image.open(io.BytesIO(data))))
        elif tag != "link":  # the icon, which is empty
            assert not {"src", "href"} & found.keys()

    def handle_data(self, data):
        self.text += data


def made(record, rows, examples, *, accepted=True):
    finetune = {"images": "/pairs", "masks": "/truth"}
    job = Job.of({"input": "/in", "output": "/out", "weights": "nuclei", "name": "yeast", "finetune": finetune})
    return page(record, rows, examples, job=job, verdict=Verdict(accepted, "dice rose <by> much"), steps=900)


def read(data):
    reader = Reader()
    reader.feed(data.decode())
    return reader


def test_the_page_is_self_contained_and_says_what_was_decided():
    data = made(record(), rows(), examples())
    reader = read(data)
    assert not {"iframe", "by"} & reader.tags
    assert "http" not in data.decode().replace("http-equiv", "")
    assert len(reader.images) == 4
    for text in ("Fine-tuning of yeast, 2026-01-01", "Accepted", "Dice rose <by> much.", "+0.1000", "/pairs", "nuclei"):
        assert text in reader.text
    assert "Worst: <b>.png, Dice 0.0000" in reader.text  # text, not markup
    assert "Refused" in read(made(record(), rows(), examples(), accepted=False)).text


def test_incomparable_base_weights_are_omitted():
    reader = read(made(record(comparable=False), rows(), examples(comparable=False)))
    assert len(reader.images) == 3
    assert "not compared" in reader.text


def test_errors_are_painted():
    image, truth, base, new = read(made(record(), rows(), examples())).images
    (example,) = examples()
    assert (image == example.pair.image).all()
    assert (base == image).all()  # no error
    changed = (new != image).any(axis=2)
    assert changed.all()
    classes = example.pair.truth > 0
    assert ((truth != image).any(axis=2) == classes).all()
    assert (new[classes] == truth[classes]).all()  # missed
    assert len(np.unique(new[~classes], axis=0)) == 1  # extra, in another colour


def test_dark_images_are_brightened():
    (example,) = examples()
    dark = replace(example, pair=replace(example.pair, image=example.pair.image // 8))
    image, *_ = read(made(record(), rows(), [dark])).images
    assert image.max() == 255


def test_curves_have_bounded_length():
    curves = [points.split() for points in re.findall(r'points="([^"]*)"', made(record(), rows(5000), []).decode())]
    assert sorted(map(len, curves)) == [50, 300, 300]


def test_worst_median_and_best_appear_once_each():
    assert worst_median_best(np.array([0.5, 0.1, 0.9, 0.4, 0.6])) == [("worst", 1), ("median", 0), ("best", 2)]
    assert worst_median_best(np.array([0.5])) == [("worst", 0)]


@pytest.mark.parametrize(("width", "scheme"), FEW)
def test_it_is_whole_in_a_browser(tmp_path, width, scheme):
    (tmp_path / "report.html").write_bytes(made(record(), rows(), examples()))
    with chromium() as browser, opened(browser, tmp_path / "report.html", width=width, scheme=scheme) as page:
        assert violations(page) == []
