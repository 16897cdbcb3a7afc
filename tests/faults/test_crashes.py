"""Death, pauses and power cuts at the calls of storage: a sample here, all with `python -m tests.faults crashes`."""

import pytest
from faults.calls import cut_power, die, freeze
from faults.crashes import Sweep, swept
from faults.nights import Kind

PNG, TAR, TABLE = Kind("png"), Kind("tar", "tar"), Kind("parquet", "list")


@pytest.mark.parametrize(
    ("sweep", "points"),
    [
        (Sweep(PNG, every=67), 6),
        (Sweep(TAR, every=113, first=31), 3),
        (Sweep(PNG, act=freeze, every=131, first=50), 3),
        (Sweep(PNG, within=True, every=331, first=100), 3),
    ],
    ids=["png", "tar", "pause", "within"],
)
def test_the_same_command_completes_after_death_or_a_pause_at_a_call(sweep, points):
    tally = swept(sweep)
    assert tally.problems == []
    assert tally.points >= points - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        Sweep(PNG, every=37, changed=True),
        pytest.param(Sweep(TABLE, every=67), marks=pytest.mark.full),
        pytest.param(Sweep(Kind("rle", "tar"), every=67), marks=pytest.mark.full),
        pytest.param(Sweep(PNG, within=True, every=151), marks=pytest.mark.full),
        pytest.param(Sweep(PNG, act=freeze, every=67, changed=True), marks=pytest.mark.full),
        Sweep(PNG, act=cut_power, within=True, every=97),
    ],
    ids=["changed", "table", "rle", "within", "pause", "power cut"],
)
def test_many_deaths_and_pauses(sweep):
    tally = swept(sweep)
    assert tally.problems == []
    assert tally.points


@pytest.mark.full
@pytest.mark.s3
@pytest.mark.parametrize(("kind", "act", "every"), [(PNG, die, 131), (TAR, freeze, 331)], ids=["png", "tar"])
def test_deaths_and_pauses_in_a_bucket(kind, act, every, bucket):
    tally = swept(Sweep(kind, act=act, every=every, first=100), bucket)
    assert tally.problems == []
    assert tally.points
