import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

GOOD = {"input": "in", "output": "out", "weights": "nuclei"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.max_error_rate=2", "run.max_error_rate = 2: must be a number from 0 to 1, such as 0.01"),
        ("run.shard_size=0", 'run.shard_size = 0: must be an integer ≥ 1 or "auto", such as 64'),
        ("masks.values=[0, 300]", r"masks.values = \[0, 300\]: values must lie in 0 … 255"),
        ("masks.values=[1, 1]", r"masks.values = \[1, 1\]: each class needs a different value"),
        ("finetune.workers=3", r"\[finetune\] batch_size must be a multiple of workers"),
    ],
)
def test_wrong_values_are_refused(override, message):
    with pytest.raises(JobError, match=message) as error:
        Job.of(GOOD, [override])
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_selection_is_checked():
    job = Job.of(GOOD, ['select.only="new"', 'select.since="2026-11-24"', "run.deadline=90m"])
    assert (job.select.only, job.select.since.isoformat()) == (("new",), "2026-11-24T00:00:00+00:00")
    assert job.run.deadline_seconds == 5400
    for wrong in ("select.only=old", "select.classes=bad", "select.limit=0", "run.deadline=6", "run.webhook=ftp://x"):
        with pytest.raises(JobError):
            Job.of(GOOD, [wrong])


@pytest.mark.parametrize("url", ["https://user:canary@host/hook", "https://host/hook?a=b&token=canary"])
def test_finding_15_a_webhook_with_a_password_or_token_is_refused(url):
    with pytest.raises(JobError, match=r"run.webhook = .*: must not contain a password or token; put") as error:
        Job.of(GOOD, [f"run.webhook={url}"])
    assert "canary" not in str(error.value)
    assert Job.of(GOOD, ["run.webhook=https://host/hook?a=b"]).run.webhook == "https://host/hook?a=b"
