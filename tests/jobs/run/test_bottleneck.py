"""The sentence at the end of a run, for each thing that can hold one back."""

import pytest

from maskfleet.jobs.run.bottleneck import idle_share, limit, share_of_forward


def stage(busy=0.0, starved=0.0, blocked=0.0, lanes=1):
    return {"busy_seconds": busy, "starved_seconds": starved, "blocked_seconds": blocked, "lanes": lanes}


def record(segment, *, decode=None, encode=None, write=None, device="cuda", loose=True):
    stages = {"segment": segment, "decode": decode or stage(), "encode": encode or stage(), "write": write or stage()}
    return {
        "worker_seconds": 100.0,
        "measured_pixels": 1000 * 512 * 256,
        "stages": stages,
        "device": device,
        "loose": loose,
        "forward": {"seconds_per_image": 0.09, "height": 512, "width": 256},
    }


def test_a_busy_device_is_the_limit():
    assert limit(record(stage(98.0))) == "GPU busy 98% of the time: it is the limit, and more of them would be faster"


@pytest.mark.parametrize(
    ("segment", "more", "sentence"),
    [
        (stage(62, blocked=30), {"encode": stage(90, lanes=3)}, "GPU idle 38%: PNG encoding; give the worker 2 more CPUs"),
        (stage(50, starved=40), {"decode": stage(190, starved=5, lanes=2)}, "GPU idle 50%: decoding the images; give the worker 2 more CPUs"),
        (stage(50, starved=40), {"decode": stage(20, starved=60)}, "GPU idle 50%: reading the images"),
        (stage(50, starved=10), {"write": stage(80)}, "GPU idle 50%: writing the masks; set masks.format = 'tar'"),
        (stage(50, starved=10), {"write": stage(80), "loose": False}, "GPU idle 50%: writing the masks; write to faster storage"),
        (stage(50, starved=10), {"device": "cpu"}, "network idle 50%: beginning and ending shards"),
    ],
)  # fmt: skip
def test_what_an_idle_device_waited_for(segment, more, sentence):
    assert limit(record(segment, **more)).startswith(sentence)


def test_shares():
    some = record(stage(62.0))
    assert idle_share(some) == pytest.approx(0.38)
    assert share_of_forward(some) == pytest.approx(0.9)  # 10 images/s of a possible 11.1
    assert share_of_forward(some | {"forward": None}) is None


def test_lanes_of_a_gpu_share_it_and_those_of_a_cpu_do_not():
    """Each lane waited for half of its time, but only a tenth of the time did both."""
    stages = {"segment": stage(100, starved=80, lanes=2), "decode": stage(99), "device": stage(90)}
    on_gpu = record(stage()) | {"stages": stages}
    assert idle_share(on_gpu) == pytest.approx(0.1)
    assert limit(on_gpu).startswith("GPU idle 10%: decoding the images; give the worker 1 more CPU")
    hardly = stages | {"segment": stage(100, starved=20, lanes=2)}
    assert limit(on_gpu | {"stages": hardly}).startswith("GPU idle 10%: beginning and ending shards"), (
        "80 s are of neither"
    )
    assert idle_share(on_gpu | {"device": "cpu"}) == pytest.approx(0.5)
    without = {name: each for name, each in stages.items() if name != "device"}
    assert idle_share(on_gpu | {"stages": without}) == pytest.approx(0.5), "of a version before"


def test_a_run_in_which_nothing_ran_has_no_limit():
    nothing = record(stage()) | {"worker_seconds": 0.0, "stages": {}}
    assert limit(nothing) is share_of_forward(nothing) is None


def test_a_device_that_never_worked_needs_as_many_cpus_again():
    assert "1 more CPU (" in limit(record(stage(0, starved=90), decode=stage(90)))
