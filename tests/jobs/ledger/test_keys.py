import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger.keys import chosen

KEYS = ["a/b.png", "b.png", "c/a.tar/x/1.jpg", "c/b.tar/x/1.jpg", "d/11.jpg", "e/01.tif"]


def among_all(ending):
    return chosen(ending, [key for key in KEYS if key.endswith(ending)])


@pytest.mark.parametrize(
    ("ending", "key"),
    [
        ("b.png", "b.png"),  # the full key wins over another's ending
        ("a/b.png", "a/b.png"),
        ("a.tar/x/1.jpg", "c/a.tar/x/1.jpg"),
        ("11.jpg", "d/11.jpg"),
        ("1.tif", "e/01.tif"),  # not a path component, but characters of one key only
    ],
)
def test_a_unique_ending_is_enough(ending, key):
    assert among_all(ending) == key


def test_an_ambiguous_ending_is_refused_with_its_candidates():
    with pytest.raises(JobError, match="'1.jpg' matches c/a.tar/x/1.jpg, c/b.tar/x/1.jpg; give more"):
        among_all("1.jpg")
    with pytest.raises(JobError, match="no image key ends with 'z'"):
        among_all("z")
