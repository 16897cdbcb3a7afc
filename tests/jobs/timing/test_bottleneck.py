"""The sentence at the end of a run, for each possible bottleneck."""

from dataclasses import replace

import pytest

from maskfleet.jobs.timing.bottleneck import Speed, StageTime


def stage(busy=0.0, starved=0.0, blocked=0.0, lanes=1):
    return StageTime(busy_seconds=busy, starved_seconds=starved, blocked_seconds=blocked, lanes=lanes)


def speed(segment, *, decode=None, encode=None, write=None, device="cuda", loose=True):
    stages = {"segment": segment, "decode": decode or stage(), "encode": encode or stage(), "write": write or stage()}
    return Speed(
        worker_seconds=100.0,
        measured_pixels=1000 * 512 * 256,
        stages=stages,
        device=device,
        loose=loose,
        forward={"seconds_per_image": 0.09, "height": 512, "width": 256},
    )


def test_a_busy_device_is_the_limit():
    assert speed(stage(98.0)).limit == "GPU busy 98% of the time: it is the limit; add more of them to go faster"


@pytest.mark.parametrize(
    ("segment", "more", "sentence"),
    [
        (stage(62, blocked=30), {"encode": stage(90, lanes=3)}, "GPU idle 38%: PNG encoding; give the worker 2 more CPUs"),
        (stage(50, starved=40), {"decode": stage(190, starved=5, lanes=2)}, "GPU idle 50%: decoding the images; give the worker 2 more CPUs"),
        (stage(50, starved=40), {"decode": stage(20, starved=60)}, "GPU idle 50%: reading the images"),
        (stage(50, starved=10), {"write": stage(80)}, "GPU idle 50%: writing the masks; write to faster storage, or set masks.format = 'tar' if you need"),
        (stage(50, starved=10), {"write": stage(80), "loose": False}, "GPU idle 50%: writing the masks; write to faster storage"),
        (stage(50, starved=10), {"device": "cpu"}, "network idle 50%: mostly shard overhead; raise run.shard_size"),
    ],
)  # fmt: skip
def test_an_idle_device_names_its_cause(segment, more, sentence):
    assert speed(segment, **more).limit.startswith(sentence)


@pytest.mark.parametrize("write", [stage(), stage(40)])
def test_a_short_run_gets_no_advice(write):
    short = replace(speed(stage(10, starved=2), write=write), worker_seconds=20.0)
    assert short.limit.endswith("; normal for a short run")


def test_shares():
    some = speed(stage(62.0))
    assert some.idle_share == pytest.approx(0.38)
    assert some.forward_share == pytest.approx(0.9)  # 10 images/s of a possible 11.1
    assert replace(some, forward=None).forward_share is None


def test_streams_share_a_gpu_but_not_a_cpu():
    """Each stream waited for half of its time, but both waited at once for only a tenth of the time."""
    stages = {"segment": stage(100, starved=80, lanes=2), "decode": stage(99), "device": stage(90)}
    on_gpu = replace(speed(stage()), stages=stages)
    assert on_gpu.idle_share == pytest.approx(0.1)
    assert on_gpu.limit.startswith("GPU idle 10%: decoding the images; give the worker 1 more CPU")
    hardly = replace(on_gpu, stages=stages | {"segment": stage(100, starved=20, lanes=2)})
    assert hardly.limit.startswith("GPU idle 10%: mostly shard overhead"), "80 s are neither starved nor blocked"
    assert replace(on_gpu, device="cpu").idle_share == pytest.approx(0.5)
    without = {name: each for name, each in stages.items() if name != "device"}
    assert replace(on_gpu, stages=without).idle_share == pytest.approx(0.5)


def test_a_run_without_work_has_no_limit():
    nothing = replace(speed(stage()), worker_seconds=0.0, stages={})
    assert nothing.limit is nothing.forward_share is None


def test_a_device_that_never_worked_needs_as_many_cpus_again():
    assert "1 more CPU (" in speed(stage(0, starved=90), decode=stage(90)).limit
