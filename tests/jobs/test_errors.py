import pytest

from maskfleet.jobs.errors import JobError, redacted, unsigned


@pytest.mark.parametrize(
    "text",
    [
        "key AKIAABCDEFGHIJKLMNOP denied",
        "https://user:hunter22@host/path",
        "aws_secret_access_key=wJalrXUtnFEMIhunter22",
        "GET /x?X-Amz-Signature=hunter22hunter22&b=1",
        "https://x.blob.core.windows.net/a?sv=2024&sig=hunter22hunter22&se=1",
        "https://b.s3.amazonaws.com/a?AWSAccessKeyId=x&Signature=hunter22%3D&Expires=1",
        "https://storage.googleapis.com/b?X-Goog-Signature=hunter22&X-Goog-Credential=hunter22",
        "{'Authorization': 'AWS4-HMAC-SHA256 hunter22'}",
        'password: "hunter22"',
    ],
)
def test_errors_carry_no_secrets(text):
    assert "hunter22" not in redacted(text)
    assert "AKIAABCDEFGHIJKLMNOP" not in str(JobError(text))


def test_a_url_is_stored_without_its_credentials():
    for url, stored in {
        "https://host/a.png?sig=abc&x=1": "https://host/a.png?sig=***&x=1",
        "s3://user:pass@bucket/a.png": "s3://***@bucket/a.png",
        "s3://bucket/token=abc/a.png": "s3://bucket/token=abc/a.png",
        "token=abc/a.png?token=abc": "token=abc/a.png?token=abc",
        "https://host/a?x#sig=1": "https://host/a?x#sig=1",
    }.items():
        assert unsigned(url) == stored
