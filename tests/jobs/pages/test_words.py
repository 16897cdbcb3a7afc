import pytest

from maskfleet.jobs.words import counted, duration, moment, percent, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.84, "0.8 s"), (42.4, "42 s"), (59.7, "1 min"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (3600, "1 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (1, "100 %"), (0.1234, "12.3 %"), (0.0045, "0.45 %"), (0.9997, "99.970 %"), (0.0000001, "< 0.001 %")],
)
def test_a_share_is_told_from_nothing_and_from_all(share, words):
    assert percent(share).replace("\xa0", " ") == words


def test_sizes_counts_and_moments():
    assert [size(count) for count in (1, 999, 1500, 2e6, 123e9)] == [
        "1 byte",
        "999 bytes",
        "1.5 kB",
        "2.0 MB",
        "123 GB",
    ]
    assert [counted(count, "image") for count in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert moment("2026-11-28T03:00:00+01:00") == "2026-11-28 02:00 UTC"
    assert moment("<b>") == "<b>"
