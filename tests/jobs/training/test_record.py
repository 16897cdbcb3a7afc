import json

from maskfleet.jobs.training.gate import Verdict
from maskfleet.jobs.training.record import (
    ClassScores,
    Evaluation,
    Judgement,
    TrainingRecord,
    ValidationImage,
)
from maskfleet.jobs.training.scores import KINDS, Interval

SCORES = Evaluation(
    images=1,
    dice=0.5,
    iou=0.25,
    classes=[
        ClassScores(
            number=1,
            value=(255, 0, 0),
            intervals={kind: Interval(mean=0.5, low=0.25, high=0.75) for kind in KINDS},
        )
    ],
)


def record(base):
    image = ValidationImage(key="a.png", base=None if base is None else 0.25, new=0.5, others=0.125)
    return TrainingRecord(
        id="abc", weights="unjudged.safetensors", identity={"steps": 3}, trained_on=2, new=SCORES, base=base,
        validation=[image], finished="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_a_record_survives_its_json():
    for base in (SCORES, None):
        unjudged = record(base)
        judged = unjudged.judged(
            Judgement(gate="better", verdict=Verdict(accepted=True, reason="better")), weights="weights.safetensors"
        )
        for each in (unjudged, judged):
            assert TrainingRecord.from_json(each.to_json()) == each


def test_result_json_keeps_its_keys():
    """Outputs of every release hold these keys, and other programs read them."""
    assert list(record(SCORES).to_dict()) == [
        "id", "weights", "about", "trained_on", "images", "dice", "iou", "classes", "base", "held_back", "finished",
    ]  # fmt: skip
    stored = json.loads(record(None).to_json())
    assert stored["base"] is None
    assert stored["held_back"] == [{"key": "a.png", "base": None, "new": 0.5, "others": 0.125}]
    assert stored["classes"][0]["class"] == 1
