import pytest
from conftest import jpeg

from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.tools import machine_speed


def test_codecs_are_measured():
    found = machine_speed.codecs([jpeg(seed) for seed in range(6)])
    assert found["images"] == 6
    for name in ("decode", "encode", "both"):
        assert found[f"{name}_per_second"] > 0
        assert found[f"{name}_per_second_one_core"] > 0


def test_a_folder_is_left_unchanged(tmp_path):
    found = machine_speed.storage(str(tmp_path), objects=3, size=100)
    assert (found["objects"], found["bytes"], found["retries"]) == (3, 100, 0)
    assert found["put_per_second"] > 0
    assert found["get_per_second"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.s3
def test_a_bucket_is_left_unchanged(bucket):
    assert machine_speed.storage(bucket, objects=3, size=100)["get_cpu_ms"] > 0
    assert not list(open_storage(bucket).walk())
