import pytest

from maskfleet.jobs.errors import Changed, NotFound
from maskfleet.jobs.storage.files import Files


@pytest.fixture
def url(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    return str(tmp_path / "a")


def test_a_range_of_a_file_is_read_in_a_thread(url):
    files = Files()
    assert [files.range(url, start, 5, None).result()[0] for start in (0, 50)] == [0, 50]
    with pytest.raises(Changed):
        files.range(url, 0, 5, "another").result()
    with pytest.raises(NotFound):
        files.ranged(f"{url}-missing", None)
    assert files.ranged(url, None).size() == 100
    files.close()


def test_a_storage_is_opened_once(url, tmp_path):
    files = Files()
    assert files.found(url)[0] is files.found(str(tmp_path))[0]


def test_a_summary_is_made_once_per_version(url):
    files, made = Files(), []

    def summary(number):
        return lambda: made.append(number) or number

    assert [files.summary(url, "1", summary(1)), files.summary(url, "1", summary(2))] == [1, 1]
    assert files.summary(url, "2", summary(3)) == 3
    assert made == [1, 3]
