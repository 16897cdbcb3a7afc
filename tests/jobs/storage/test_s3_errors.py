import socket

import pytest

from maskfleet.jobs.errors import Changed, Denied, NotFound, StorageError
from maskfleet.jobs.storage.s3_errors import final_error, is_expired, reason, unreachable


class ClientError(Exception):
    """An error in the form of botocore's."""

    def __init__(self, code):
        super().__init__(f"{code} when calling")
        self.response = {"Error": {"Code": code}}


class EndpointConnectionError(Exception):
    """A failure of transport, told by its name."""


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("412", Changed),
        ("NoSuchBucket", Denied),
        ("NoSuchKey", NotFound),
        ("AccessDenied", Denied),
        ("ExpiredToken", Denied),
        ("EntityTooLarge", StorageError),
    ],
)
def test_a_final_code_has_an_error_of_its_own(code, kind):
    assert type(final_error(ClientError(code), "s3://b/k")) is kind


def test_the_code_may_be_that_of_a_cause():
    error = OSError("wrapped by s3fs")
    error.__cause__ = ClientError("PreconditionFailed")
    assert type(final_error(error, "s3://b/k")) is Changed


@pytest.mark.parametrize("error", [ClientError("SlowDown"), ClientError("503"), EndpointConnectionError("refused")])
def test_what_may_pass_is_retried(error):
    assert final_error(error, "s3://b/k") is None


def test_new_credentials_help_against_expired_ones_alone():
    assert is_expired(ClientError("ExpiredToken"))
    assert not is_expired(ClientError("AccessDenied"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("first\nsecond"), "no valid answer"),
        (ConnectionRefusedError(), "the connection is refused"),
        (EndpointConnectionError("Could not connect to the endpoint URL"), "the connection is refused"),
        (ClientError("SlowDown"), "the server answers SlowDown"),
        (TimeoutError(), "no answer in time"),
    ],
)
def test_a_reason_has_no_words_of_the_libraries(error, words):
    assert reason(error) == words


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("localhost:9000", "the server 'localhost:9000' is no URL; write http(s)://HOST:PORT in AWS_ENDPOINT_URL_S3"),
        (
            "http://127.0.0.1:1",
            "nothing answers at http://127.0.0.1:1; correct AWS_ENDPOINT_URL_S3, or start the server",
        ),
        ("http://nope.invalid:9000", "there is no host nope.invalid; correct AWS_ENDPOINT_URL_S3, or start the server"),
    ],
)
def test_a_server_that_is_not_there_is_found_in_seconds(endpoint, message, monkeypatch):
    monkeypatch.setattr("maskfleet.jobs.storage.s3_errors._REACHING_PAUSES", (0.0, 0.1))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert str(unreachable("s3://b", endpoint)) == f"s3://b: {message}"


def test_a_server_that_listens_or_a_proxy_is_left_alone(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert unreachable("s3://b", f"http://127.0.0.1:{server.getsockname()[1]}") is None
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    assert unreachable("s3://b", "http://s3.example.org") is None
