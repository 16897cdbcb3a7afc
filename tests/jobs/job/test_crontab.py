import subprocess
from shutil import which

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.job.crontab import Crontab


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 2 * * *", ((30,), (2,), None, None, None)),
        ("*/15 0-6/3 1,15 jan-MAR mon-fri", ((0, 15, 30, 45), (0, 3, 6), (1, 15), (1, 2, 3), (1, 2, 3, 4, 5))),
        ("5/20 * * * 7", ((5, 25, 45), None, None, None, (0,))),
        ("0 0 * * 5-7", ((0,), (0,), None, None, (0, 5, 6))),
        ("* * * * *", (None,) * 5),
    ],
)
def test_fields_are_parsed(text, expected):
    assert Crontab.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "@daily", "* * * *", "60 * * * *", "* 24 * * *", "5-3 * * * *", "*/0 * * * *", "x * * * *", "* * 0 * *",
             "CRON_TZ=UTC 0 2 * * *", "1- * * * *", "* * * * 8", "* * * jam *"],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        Crontab.parse(text)


def test_day_and_weekday_are_joined_by_or():
    assert Crontab.parse("0 4 13 * fri").on_calendar("Europe/Berlin") == [
        "*-*-13 04:00:00 Europe/Berlin",
        "Fri *-*-* 04:00:00 Europe/Berlin",
    ]


def fields():
    def of(low, high):
        one = st.integers(low, high).map(str)
        span = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: f"{min(pair)}-{max(pair)}")
        return st.one_of(
            st.just("*"), st.lists(st.one_of(one, span), min_size=1, max_size=3).map(",".join), st.just("*/7")
        )

    return st.tuples(of(0, 59), of(0, 23), of(1, 28), of(1, 12), of(0, 6)).map(" ".join)


@pytest.mark.skipif(which("systemd-analyze") is None, reason="this machine does not have systemd")
@settings(max_examples=15, deadline=None)
@given(fields())
def test_systemd_accepts_the_same_times(text):
    lines = Crontab.parse(text).on_calendar("Europe/Berlin")
    done = subprocess.run(["systemd-analyze", "calendar", *lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "never" not in done.stdout.lower().split("next elapse")[-1]
