import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from conftest import decoded_pairs
from PIL import Image

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
            data = base64.b64decode(found["src"].removeprefix("data:image/png;base64,"))
            self.images.append(np.asarray(Image.open(io.BytesIO(data))))
        else:
            assert not {"src", "href"} & found.keys()

    def handle_data(self, data):
        self.text += data


def read(data):
    reader = Reader()
    reader.feed(data.decode())
    return reader


def test_the_page_is_self_contained():
    reader = read(page(record(), rows(), examples()))
    assert not {"script", "link", "iframe"} & reader.tags
    assert "http" not in page(record(), rows(), examples()).decode()
    assert len(reader.images) == 4
    assert "Mean Dice gain 0.1000" in reader.text
    assert "worst: <b>.png, Dice 0.0000" in reader.text  # text, not markup


def test_incomparable_base_weights_are_omitted():
    reader = read(page(record(comparable=False), rows(), examples(comparable=False)))
    assert len(reader.images) == 3
    assert "not compared" in reader.text


def test_errors_are_painted():
    image, truth, base, new = read(page(record(), rows(), examples())).images
    (example,) = examples()
    assert (image == example.pair.image).all()
    assert (base == image).all()  # no error
    changed = (new != image).any(axis=2)
    assert changed.all()
    classes = example.pair.truth > 0
    assert ((truth != image).any(axis=2) == classes).all()
    assert (new[classes] == truth[classes]).all()  # missed
    assert len(np.unique(new[~classes], axis=0)) == 1  # extra, in another colour


def test_curves_have_bounded_length():
    text = page(record(), rows(5000), examples()).decode()
    loss, dice = re.findall(r'points="([^"]*)"', text)
    assert len(loss.split()) <= 640
    assert len(dice.split()) == 50


def test_worst_median_and_best_appear_once_each():
    assert worst_median_best(np.array([0.5, 0.1, 0.9, 0.4, 0.6])) == [("worst", 1), ("median", 0), ("best", 2)]
    assert worst_median_best(np.array([0.5])) == [("worst", 0)]
