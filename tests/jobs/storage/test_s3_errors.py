import pytest

from maskfleet.jobs.errors import Changed, Denied, NotFound, StorageError
from maskfleet.jobs.storage.s3_errors import final_error, is_expired, summary


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


def test_a_summary_is_one_line():
    assert summary(OSError("first\nsecond")) == "OSError: first"
    assert summary(OSError()) == "OSError"
