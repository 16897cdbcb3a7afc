"""Errors raised on purpose.

MaskfleetError            one line with the remedy; the command line shows nothing else
├── JobError              the job, its input, weights or output are wrong; exit 2, never retried
├── Refused               a gate refused new weights; exit 3
├── Locked                another run holds the output; exit 4
│   └── Skipped           the same, with run.on_overlap = "skip"; exit 0
├── Unfinished            the deadline passed before the last shard; exit 1
└── StorageError          storage failed after retries; exit 1
    ├── NotFound          the object does not exist
    ├── Denied            credentials are missing, wrong or insufficient, or the bucket does not exist
    ├── Changed           the object has changed since it was planned
    ├── Damaged           a record of a run is missing, unreadable or not the committed one
    └── Fault             the object, or an image inside it, is permanently unreadable (`jobs.storage.contract`)

A bad image is not an error of a run: it becomes a row (`jobs.ledger.statistics`).
"""

import re

_SECRETS = re.compile(
    r"(?P<id>\b(?:AKIA|ASIA)[0-9A-Z]{12,})"
    r"|(?P<url>(?<=://)[^/\s:@]+:[^/\s@]+(?=@))"
    r"|(?P<header>\bAuthorization['\"]?\s*[:=]\s*['\"]?)[^'\"\n]+"
    r"|(?P<name>\b(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|(?<=[?&])(?:sig|signature)"
    r"|aws_?secret_?access_?key|aws_?session_?token|secret|password|token)['\"]?\s*[:=]\s*['\"]?)[^\s'\"&,}]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return the text with credentials replaced by `***`: key ids, secrets, tokens, signed URLs, user:password@."""
    return _SECRETS.sub(lambda match: (match["name"] or match["header"] or "") + "***", text)


def unsigned(url: str) -> str:
    """Return a URL with the credentials in its query and before its host replaced by `***`. Its path stays.

    Rows and jobs are stored with their URLs, and a signed one is a credential.
    """
    if "://" not in url:
        return url
    place, mark, query = url.partition("?")
    scheme, _, rest = place.partition("://")
    host, slash, path = rest.partition("/")
    return f"{redacted(f'{scheme}://{host}')}{slash}{path}{redacted(f'{mark}{query}')}"


class MaskfleetError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        exit_code: Exit code of the command line.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class JobError(MaskfleetError):
    """The job, its input, weights or output are wrong."""

    exit_code = 2


class Refused(MaskfleetError):
    """A gate refused new weights."""

    exit_code = 3


class Locked(MaskfleetError):
    """Another run holds the output."""

    exit_code = 4


class Skipped(Locked):
    """Another run holds the output, and `run.on_overlap` is "skip"."""

    exit_code = 0


class Unfinished(MaskfleetError):
    """The deadline passed before the last shard. The same command resumes the run."""


class Stopped(Exception):
    """A run stopped on request; finished shards are kept and the same command resumes it. Not an error: exit 130."""


class StorageError(MaskfleetError):
    """Storage failed after retries."""


class NotFound(StorageError):
    """The object does not exist."""


class Denied(StorageError):
    """Credentials are missing, wrong or insufficient, or the bucket does not exist."""


class Changed(StorageError):
    """The object has changed since it was planned."""


class Damaged(StorageError):
    """A record of a run is missing or unreadable, or an object does not match its commit."""
