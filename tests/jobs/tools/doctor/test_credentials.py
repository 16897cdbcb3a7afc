import pytest

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.doctor.contract import Subject
from maskfleet.jobs.tools.doctor.credentials import credentials, input_credentials, source_of


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def test_the_source_is_named_and_never_the_value(monkeypatch, tmp_path):
    found = source_of(None)
    assert (found.verdict, found.text) == ("problem", "no credentials")
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id=canary-1\naws_secret_access_key=canary-2\n"
        "[night]\naws_access_key_id=canary-3\naws_secret_access_key=canary-4\n"
    )
    assert source_of(None).text == "from the shared credentials file"
    assert source_of("night").text == "from the shared credentials file, profile night"
    found = source_of("day")
    assert (found.verdict, found.text) == ("problem", "ProfileNotFound, profile day")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-5")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-6")
    assert source_of(None).text == "from environment variables (AWS_ACCESS_KEY_ID)"
    assert source_of("night").text == "from the shared credentials file, profile night"
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary-7")
    found = source_of(None)
    assert (found.verdict, "nothing renews them" in found.text) == ("warning", True)
    assert "canary" not in str(found)


def test_web_identity_is_named_without_a_request(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("canary")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/night")
    assert source_of(None).text == "from web identity (AWS_WEB_IDENTITY_TOKEN_FILE)"


def test_a_local_job_needs_none(tmp_path):
    job = {"input": str(tmp_path), "output": str(tmp_path / "out"), "weights": "nuclei"}
    assert credentials(Subject(job=Job.of(job))) is None
    assert credentials(Subject()) is None
    assert credentials(Subject(job=Job.of({**job, "output": "s3://b/out"}))).verdict == "problem"


def test_the_input_has_credentials_of_its_own(tmp_path):
    job = {"input": "s3://b/in", "output": str(tmp_path / "out"), "weights": "nuclei"}
    (tmp_path / "credentials").write_text("[partner]\naws_access_key_id=canary-1\naws_secret_access_key=canary-2\n")
    assert input_credentials(Subject(job=Job.of({**job, "input": "in"}))) is None
    assert input_credentials(Subject(job=Job.of(job))).verdict == "problem"
    own = {"profile": "partner"}
    assert "profile partner" in input_credentials(Subject(job=Job.of({**job, "input_options": own}))).text
    own = {"anonymous": True}
    found = input_credentials(Subject(job=Job.of({**job, "input_options": own})))
    assert (found.verdict, found.text) == ("ok", "none: the input is read anonymously")
