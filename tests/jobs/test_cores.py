"""Cores within the CPU affinity and the limit of a container."""

import os

import pytest

from maskfleet.jobs import cores as module
from maskfleet.jobs.cores import cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_container_is_read(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert module._limit(tmp_path) == limit


@pytest.mark.parametrize(("limit", "found"), [(None, 6), (2.0, 2), (1.5, 1), (0.2, 1), (64.0, 6)])
def test_cores_respect_affinity_and_limit(monkeypatch, limit, found):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(module, "_limit", lambda _: limit)
    assert cores() == found
