import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from conftest import decoded_pairs
from PIL import Image

from maskfleet.jobs.training.report import Example, chosen, page


def record(old=True):
    held = [{"key": f"{number}.png", "base": 0.5 if old else None, "new": 0.6, "others": 0.1} for number in range(6)]
    row = {"class": 1, "value": 255} | {
        kind: {"mean": 0.6, "low": 0.5, "high": 0.7} for kind in ("dice", "iou", "precision", "recall")
    }
    scored = {"classes": [row], "images": 6}
    return {"id": "abc", "trained_on": 20, "held_back": held, "base": scored if old else None, **scored}


def rows(count=900):
    return [
        {"step": step, "loss": 1 / step, "dice": 0.5 + step / 2000 if step % 100 == 0 else None}
        for step in range(1, count + 1)
    ]


def examples(old=True):
    pairs = decoded_pairs()
    wrong = [1 - pair.truth for pair in pairs]
    return [("worst", Example(pairs[0]._replace(key="<b>.png"), pairs[0].truth if old else None, wrong[0], 0.0))]


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


def test_the_page_has_all_in_itself():
    reader = read(page(record(), rows(), examples()))
    assert not {"script", "link", "iframe"} & reader.tags
    assert "http" not in page(record(), rows(), examples()).decode()
    assert len(reader.images) == 4
    assert "Mean gain in Dice 0.1000" in reader.text
    assert "worst: <b>.png, Dice 0.0000" in reader.text  # text, not markup


def test_old_weights_that_cannot_be_compared_are_left_out():
    reader = read(page(record(old=False), rows(), examples(old=False)))
    assert len(reader.images) == 3
    assert "not compared" in reader.text


def test_what_is_wrong_is_painted():
    image, truth, old, new = read(page(record(), rows(), examples())).images
    ((_, example),) = examples()
    assert (image == example.pair.image).all()
    assert (old == image).all()  # nothing is wrong
    changed = (new != image).any(axis=2)
    assert changed.all()
    classes = example.pair.truth > 0
    assert ((truth != image).any(axis=2) == classes).all()
    assert (new[classes] == truth[classes]).all()  # missed
    assert len(np.unique(new[~classes], axis=0)) == 1  # invented, in another colour


def test_curves_have_bounded_length():
    text = page(record(), rows(5000), examples()).decode()
    loss, dice = re.findall(r'points="([^"]*)"', text)
    assert len(loss.split()) <= 640
    assert len(dice.split()) == 50


def test_worst_median_and_best_each_once():
    assert chosen(np.array([0.5, 0.1, 0.9, 0.4, 0.6])) == [("worst", 1), ("median", 0), ("best", 2)]
    assert chosen(np.array([0.5])) == [("worst", 0)]
