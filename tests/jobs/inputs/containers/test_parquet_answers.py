"""Answers of a process that is in the hands of its file: whatever it says costs rows, and no run."""

import pytest
from conftest import jpeg

from maskfleet.jobs.inputs.containers import parquet_process
from maskfleet.jobs.inputs.containers.contract import Listing, Reference
from maskfleet.jobs.inputs.containers.parquet_files import ParquetFiles
from maskfleet.jobs.inputs.selector import is_image
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.files import Files


class Liar:
    """Stands for the channel to a process: gives prepared messages."""

    def __init__(self, answers):
        self.answers = list(answers)

    def send(self, data, *, seconds):
        pass

    def receive(self, *, seconds, most):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def lying(monkeypatch, answers):
    """Let every process answer as prepared."""

    class Isolated:
        pid = 0

        def __init__(self, *_, **__):
            self.channel = Liar([b'["done", null]', *answers])

        def stop(self):
            pass

    monkeypatch.setattr(parquet_process, "Isolated", Isolated)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(jpeg(0))
    files = Files()
    yield files, str(tmp_path / "a.parquet")
    files.close()


HEADERS = [
    b'["done", ["jpg", null, 1000000000000, 1.0]]',
    b'["done", ["jpg", null, -1, 1.0]]',
    b'["done", ["jpg", null, 1, Infinity]]',
    b'["done", ["jpg", null, 1, NaN]]',
    b'["done", ["jpg", null, 1, -5.0]]',
    b'["done", [7, null, 1, 1.0]]',
    b'["done", {"a": 1}]',
    b'["done"]',
    b'["fault", "a&b=c"]',
    b'["fault", ["x"]]',
    b'["data", 5]',
    b'["data", 0]',
    b'["data", -3]',
    b'["data", 1e300]',
    b'["read", -1, 5]',
    b'["read", 0, 999999999999]',
    b'["read", "a", null]',
    b'["odd"]',
    b"[]",
    b"7",
    b"null",
    b"not JSON",
    b"[" * 100_000,
    EOFError(),
    TimeoutError(),
    ValueError("a message of 9999999999 bytes"),
]


@pytest.mark.parametrize("answer", HEADERS, ids=lambda answer: repr(answer)[:30])
def test_a_lie_about_a_file_is_a_fault(file, monkeypatch, answer):
    files, url = file
    lying(monkeypatch, [answer, EOFError()])
    with pytest.raises(Fault) as fault:
        list(ParquetFiles().entries(files.ranged(url, None), Listing(files, is_image)))
    assert fault.value.error_class in ("damaged_parquet", "too_large_parquet", "slow_parquet")


@pytest.mark.parametrize(
    "answer",
    [
        b'["done", [[5, 1]]]',
        b'["done", [[0, "x"]]]',
        b'["done", [["0", 1]]]',
        b'["done", [[0]]]',
        b'["done", []]',
        b'["done", null]',
        b'["done", 7]',
        EOFError(),
    ],
    ids=repr,
)
def test_a_lie_about_rows_is_a_fault(file, monkeypatch, answer):
    files, url = file
    monkeypatch.setattr("maskfleet.jobs.inputs.containers.parquet_pool.OpenTable.list_of", lambda *_: [2])
    lying(monkeypatch, [answer, EOFError()])
    member = Reference("a", url, None, {"row": "0", "column": "jpg"})
    with pytest.raises(Fault) as fault:
        ParquetFiles().reader(files, [member]).read(member)
    assert fault.value.error_class == "damaged_row"


@pytest.mark.parametrize("rows", [[[1, 2]], ["a"], [{"a": 1}], [[7]], [[["x"]]], [["a"]] * 9])
def test_a_lie_about_names_is_a_fault(file, monkeypatch, rows):
    files, url = file
    answers = [rows, []]
    monkeypatch.setattr("maskfleet.jobs.inputs.containers.parquet_pool.OpenTable.list_of", lambda *_: answers.pop(0))
    lying(monkeypatch, [b'["done", ["jpg", "names", 1, 1.0]]'])
    with pytest.raises(Fault):
        list(ParquetFiles().entries(files.ranged(url, None), Listing(files, is_image)))
