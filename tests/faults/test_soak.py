"""The soak: one seed here, more in the full tests, fifty with `python -m tests.faults soak`."""

import pytest
from faults.soak import soaked


def test_a_seed_in_folders():
    found = soaked(0)
    assert found.problems == [], "\n".join(found.story)
    assert found.injected


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
def test_more_seeds_in_folders(seed):
    found = soaked(seed)
    assert found.problems == [], "\n".join(found.story)


@pytest.mark.full
@pytest.mark.s3
@pytest.mark.parametrize("seed", [4])
def test_seeds_in_a_bucket(seed, bucket):
    found = soaked(seed, bucket)
    assert found.problems == [], "\n".join(found.story)
