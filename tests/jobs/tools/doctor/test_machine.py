import resource
import shutil
import types

import pytest
import torch

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.doctor import machine, versions
from maskfleet.jobs.tools.doctor.contract import Subject
from maskfleet.jobs.tools.doctor.decoding import decoding

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def job(**more):
    return Subject(job=Job.of({"input": "in", "output": "out", "weights": "nuclei", **more}))


def test_this_machine_is_described():
    for check in (machine.system, machine.memory, machine.disk, machine.open_files, machine.device, decoding):
        found = check(Subject())
        assert found.verdict in ("ok", "warning"), found
        assert bool(found.remedy) == (found.verdict == "warning")


@NO_GPU
def test_without_a_gpu_a_job_for_cuda_is_a_problem():
    assert "CPU only" in machine.device(Subject()).text
    assert machine.device(job()).verdict == "ok"
    assert machine.device(job(inference={"device": "cuda"})).verdict == "problem"


@NO_GPU
def test_a_gpu_that_pytorch_cannot_use_is_a_warning(monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n")
    monkeypatch.setattr(machine, "_DRIVER", file)
    found = machine.device(Subject())
    assert (found.verdict, "driver 470.57.02" in found.text) == ("warning", True)


def test_little_memory_disk_or_files_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "_memory", lambda: (2**33, 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=2**20))
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (256, 256))
    for check in (machine.memory, machine.disk, machine.open_files):
        found = check(job())
        assert (found.verdict, bool(found.remedy)) == ("warning", True)


def test_versions_are_compared_with_the_requirements(monkeypatch):
    found = versions.versions(Subject())
    assert (found.verdict, "torch 2." in found.text) == ("ok", True)
    real = versions._version
    monkeypatch.setattr(versions, "_version", lambda name: {"pillow": "12.9.1", "obstore": None}.get(name, real(name)))
    found = versions.versions(Subject())
    assert (found.verdict, "pillow 12.9.1 (at least 13.0.0)" in found.text) == ("problem", True)
    found = versions.faster(Subject())
    assert found.verdict == "ok" or "maskfleet[fast]" in found.remedy


@pytest.mark.parametrize(("old", "new"), [("2.9.1", "2.11"), ("12.9.1", "13.0.0"), ("missing", "1")])
def test_versions_are_compared_by_number(old, new):
    assert versions._numbers(old) < versions._numbers(new)
    assert versions._numbers("2.13.0+cpu") >= versions._numbers("2.11")
