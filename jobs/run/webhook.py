"""One POST of a run's outcome, for monitoring systems. A failing webhook is a warning and never ends the run."""

import json
import logging
import os
import urllib.request
from typing import Any

from maskfleet.jobs.errors import JobError, redacted
from maskfleet.jobs.job.schema import Job

_SECONDS = 10
_log = logging.getLogger("maskfleet")


def post(job: Job, outcome: dict[str, Any]) -> None:
    """Post an outcome to the job's webhook, if it has one.

    Args:
        job: The job.
        outcome: The outcome, as JSON values. Credentials in it are redacted.

    Raises:
        JobError: The environment variable named by the job holds no http(s) URL.
    """
    url = job.run.webhook
    if url is None:
        return
    if url.startswith("$"):
        name, url = url[1:], os.environ.get(url[1:], "")
        if not url.startswith(("http://", "https://")):
            raise JobError(f"run.webhook names {name}, which holds no http(s) URL; set it, or remove run.webhook")
    body = redacted(json.dumps(outcome)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  (checked above)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
            pass
    except OSError as error:
        # The URL itself may be a secret.
        _log.warning("the webhook request failed (%s); the outcome is in run.json", type(error).__name__)
