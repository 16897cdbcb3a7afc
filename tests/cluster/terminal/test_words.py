"""Numbers as people write them."""

import pytest

from maskfleet.jobs.words import counted, duration, money, size


@pytest.mark.parametrize(
    ("number", "noun", "text"), [(1, "mask", "1 mask"), (0, "mask", "0 masks"), (2, "class", "2 classes")]
)
def test_nouns_follow_their_number(number, noun, text):
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"), (65, "1 min 5 s"), (3599, "60 min"),
        (3600, "1 h"), (7800, "2 h 10 min"), (200_000, "2 days 8 h"),
    ],
)  # fmt: skip
def test_durations_have_at_most_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (37_260, "37 kB"), (999_600, "1.0 MB"),
     (4_200_000_000, "4.2 GB"), (10**17, "100 PB")],
)  # fmt: skip
def test_sizes_have_decimal_units(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.00 USD"), (0.001, "below 0.01 USD"), (0.006, "0.01 USD"), (1234.5, "1,234.50 USD")]
)
def test_money(amount, text):
    assert money(amount, "USD") == text
