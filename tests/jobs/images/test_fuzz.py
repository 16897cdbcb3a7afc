"""Fuzzed files of every format: each has a class, none kills a process or holds one up. More: `tests.faults.fuzz`."""

import pytest
from faults.fuzz.decoding import CLASSES, LIMITS, in_rows, whole
from faults.fuzz.files import SOUND, fuzzed, sound

from maskfleet.jobs.images.formats import FORMATS


def test_every_format_is_fuzzed():
    assert set(SOUND) == {format_.name for format_ in FORMATS}


def held(outcome, count):
    assert outcome.classes.total() == count
    assert set(outcome.classes) <= CLASSES
    assert not outcome.bad, [(number, format_) for number, format_, _ in outcome.bad]
    assert outcome.processes == 0
    assert outcome.slowest < LIMITS.seconds + 3
    assert outcome.peak < LIMITS.memory + 2**29  # the start, and pixels in shared memory


def test_sound_files_are_decoded():
    outcome = whole([(name, data) for name, files in sound().items() for data in files])
    assert outcome.classes["ok"] > 60
    assert set(outcome.classes) <= {"ok", "unsupported", "corrupt", "several_pages"}


def test_150_files_whole():
    held(whole(fuzzed(150, seed=1)), 150)


def test_some_files_in_rows():
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    held(in_rows(fuzzed(8, seed=2)), 8)


@pytest.mark.slow
def test_12000_files_whole():
    held(whole(fuzzed(12_000, seed=3)), 12_000)


@pytest.mark.slow
def test_100_files_in_rows():
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    held(in_rows(fuzzed(60, seed=4)), 60)
