"""One POST of a run's outcome, for monitoring systems. A failing webhook is a warning and never ends the run."""

import json
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

from maskfleet.jobs.errors import JobError, redacted
from maskfleet.jobs.job.schema import Job

_SECONDS = 10
_CHECK_SECONDS = 3
_log = logging.getLogger("maskfleet")


def check(job: Job) -> list[str]:
    """Check the job's webhook, if it has one. Sends nothing.

    Returns:
        A sentence for people if nothing listens at the webhook; otherwise nothing.

    Raises:
        JobError: It is not a URL, or the environment variable named by the job holds no http(s) URL.
    """
    request = _request(job, {})
    if request is None or urllib.request.getproxies():  # behind a proxy only the proxy can tell
        return []
    place = urllib.parse.urlsplit(request.full_url)
    try:
        port = place.port or {"http": 80}.get(place.scheme, 443)
        socket.create_connection((str(place.hostname), port), timeout=_CHECK_SECONDS).close()
    except (OSError, ValueError):
        # Without the URL, which may be a secret.
        return ["nothing listens at run.webhook; the run goes on, but its outcome will not arrive there"]
    return []


def post(job: Job, outcome: dict[str, Any]) -> None:
    """Post an outcome to the job's webhook, if it has one. Any failure is only a warning.

    Args:
        job: The job.
        outcome: The outcome, as JSON values. Credentials in it are redacted.
    """
    try:
        request = _request(job, outcome)
        if request is not None:
            with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310  (the URL is checked)
                pass
    except (OSError, HTTPException, ValueError, JobError) as error:
        # The URL itself may be a secret.
        _log.warning("the webhook request failed (%s); the run is not affected", type(error).__name__)


def _request(job: Job, outcome: dict[str, Any]) -> urllib.request.Request | None:
    url = job.run.webhook
    if url is None:
        return None
    if url.startswith("$"):
        name, url = url[1:], os.environ.get(url[1:], "")
        if not url.startswith(("http://", "https://")):
            raise JobError(f"run.webhook names {name}, which holds no http(s) URL; set it, or remove run.webhook")
    if not urllib.parse.urlsplit(url).hostname or re.search(r"[\s\x00-\x1f]", url):
        raise JobError("run.webhook is not a valid URL; correct it, or remove run.webhook")
    body = redacted(json.dumps(outcome)).encode()
    return urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  (as above)
