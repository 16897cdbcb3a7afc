"""One object that storage refuses, in either kind of storage: finding 3, and rows 1 and 1b of the odd inputs."""

import errno
import os
import pickle

import pytest
from faults.proxy import Proxy, Rule

from maskfleet.jobs.errors import Denied, NotFound, StorageError
from maskfleet.jobs.storage.contract import DeniedObject, Fault
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage


@pytest.fixture
def refusing(bucket, monkeypatch):
    """Return a bucket with the objects `bad` and `good`, and a function that sets the answer for `bad`."""
    open_storage(bucket).write("bad", b"x")
    open_storage(bucket).write("good", b"y")
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield (
            bucket,
            lambda status, code: proxy.set(Rule("answer", method="GET|HEAD", path="/bad$", status=status, code=code)),
        )


@pytest.mark.s3
@pytest.mark.parametrize(
    ("status", "code", "error_class", "reason"),
    [
        (403, "InvalidObjectState", "refused", "it is archived"),
        (400, "KMS.DisabledException", "refused", "its KMS key refuses; enable the key"),
        (400, "KMS.NotFoundException", "refused", "its KMS key refuses"),
        (400, "InvalidRequest", "refused", "encrypted with a key of its owner"),
        (405, "MethodNotAllowed", "refused", "the server refuses this object"),
        (403, "AccessDenied", "denied", "access denied .*grant s3:GetObject"),
    ],
)
def test_finding_3_an_object_that_a_bucket_refuses_is_a_fault_of_its_own(refusing, status, code, error_class, reason):
    bucket, answer = refusing
    answer(status, code)  # to HEAD without a body: only GET tells the reason
    storage = open_storage(bucket)
    for call in (storage.read, storage.entry, lambda path: storage.opened(path).__enter__()):
        with pytest.raises(Fault, match=reason) as error:
            call("bad")
        assert error.value.error_class == error_class
    assert isinstance(error.value, Denied) == (error_class == "denied")
    assert storage.read("good") == b"y"
    assert storage.retries == 0


@pytest.mark.s3
def test_wrong_credentials_are_no_fault_of_an_object(refusing):
    bucket, answer = refusing
    for code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
        answer(403, code)
        for call in (open_storage(bucket).read, open_storage(bucket).entry):
            with pytest.raises(Denied, match=code) as error:
                call("bad")
            assert not isinstance(error.value, Fault)


@pytest.mark.s3
def test_row_1b_a_missing_object_that_may_not_be_listed_is_denied_alone(refusing):
    bucket, answer = refusing
    answer(403, "AccessDenied")
    with pytest.raises(DeniedObject, match="or there is no such object"):
        open_storage(bucket).entry("bad")


@pytest.mark.s3
def test_storage_answers_beside_an_object_that_fails(refusing):
    bucket, answer = refusing
    answer(500, "InternalError")
    storage = open_storage(bucket)
    storage.read("good")
    storage.GET_SECONDS = 2.0
    with pytest.raises(StorageError, match="storage failed for 2 s"):
        storage.read("bad")
    assert storage.answers("bad")


@pytest.mark.parametrize("kind", [Fault("refused", "no"), DeniedObject("no")])
def test_a_fault_passes_between_processes(kind):
    again = pickle.loads(pickle.dumps(kind))
    assert (type(again), again.error_class, str(again)) == (type(kind), kind.error_class, "no")


# Local files -------------------------------------------------------------------------------------


def of_name(name):
    return lambda folder: name


def linked(name, target):
    def made(folder):
        (folder / name).symlink_to(target)
        return name

    return made


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (linked("itself", "itself"), "leads to itself"),
        (linked("dangling", "nowhere"), "a link that leads to no file; fetch"),
        (of_name("file/below"), "a file is in the place of a folder"),
        (of_name("n" * 300), "no file can have a name as long"),
        (of_name("a\0b"), "no file can have this name"),
        (of_name("\udcff\ud800"), "no file can have this name|there is no file"),
        (of_name("folder"), "is a folder|is not a file"),
    ],
)
def test_finding_3_a_local_name_that_leads_to_no_file_is_not_found(tmp_path, make, reason):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    name = make(tmp_path)
    storage = LocalStorage(str(tmp_path))
    for call in (
        storage.read, storage.entry, lambda path: storage.read_range(path, 0, 1),
        lambda path: storage.opened(path).__enter__(),
    ):  # fmt: skip
        with pytest.raises(NotFound, match=reason):
            call(name)
    assert not storage.exists(name)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that answers EIO")
def test_finding_3_a_file_with_an_input_error_says_so_and_its_neighbour_is_read(tmp_path):
    (tmp_path / "bad").symlink_to("/proc/self/mem")
    (tmp_path / "good").write_bytes(b"x")
    storage = LocalStorage(str(tmp_path))
    with pytest.raises(StorageError, match=r"bad cannot be read: .*; check the disk or mount") as error:
        storage.read_range("bad", 0, 1)
    assert not isinstance(error.value, Fault | NotFound | Denied)
    assert storage.read("good") == b"x"
    assert storage.answers("bad")


def test_a_local_file_that_may_not_be_read_is_denied_alone(tmp_path, monkeypatch):
    (tmp_path / "bad").write_bytes(b"x")
    monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    with pytest.raises(DeniedObject, match="permission denied; check the owner and mode"):
        LocalStorage(str(tmp_path)).read("bad")


def test_a_pipe_is_no_image_and_does_not_wait_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    storage = LocalStorage(str(tmp_path))
    assert storage.read("pipe") == b""
    with pytest.raises(NotFound, match="is not a file"):
        storage.entry("pipe")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL])
def test_no_error_of_the_operating_system_leaks(tmp_path, monkeypatch, number):
    storage = LocalStorage(str(tmp_path))
    storage.write("there", b"x")

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    for name in ("open", "stat", "listdir", "scandir", "unlink"):
        monkeypatch.setattr(os, name, fails)
    for call in (
        storage.read, storage.entry, storage.names, storage.delete, lambda path: storage.write(path, b""),
        lambda path: storage.create(path, b""), lambda path: storage.export(path, b""), lambda _: list(storage.walk()),
    ):  # fmt: skip
        with pytest.raises(StorageError) as error:
            call("there")
        assert "OSError" not in str(error.value)
        assert "Errno" not in str(error.value)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_a_name_that_the_file_system_has_not_is_refused_in_plain_words(tmp_path, name):
    storage = LocalStorage(str(tmp_path))
    for call in (storage.write, storage.create, storage.export):
        with pytest.raises(StorageError, match="too long for the file system|has no such names"):
            call(name, b"")
    assert storage.names("") == []


def test_row_8b_an_error_like_a_permission_does_not_blame_the_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
    with pytest.raises(Denied, match="the file system does not permit this; choose another folder") as error:
        LocalStorage(str(tmp_path)).write("a", b"")
    assert "owner" not in str(error.value)
