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


def test_a_companion_is_made_once_and_closed_with_the_files():
    class Companion:
        closed = False

        def close(self):
            self.closed = True

    files = Files()
    companion = files.companion(Companion)
    assert files.companion(Companion) is companion
    assert Files().companion(Companion) is not companion
    files.close()
    assert companion.closed
