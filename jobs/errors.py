"""What this package raises on purpose.

MaskfleetError            one line that states the remedy; the command line shows nothing else
├── JobError              the job, its input, its weights or its output are wrong; exit 2, never retried
├── Refused               a gate refused new weights; exit 3
├── Locked                another run holds the output; exit 4
│   └── Skipped           and the job says to leave it at that; exit 0
├── Unfinished            the deadline came first; exit 1
└── StorageError          storage failed, after retries; exit 1
    ├── NotFound          no such object
    ├── Denied            the credentials are missing, wrong or not sufficient, or there is no such bucket
    ├── Changed           the object is not the one that the plan saw
    └── Damaged           the object is not what a commit describes

A bad image is none of these: it is a row (`jobs.ledger.statistics`).
"""

import re

_SECRETS = re.compile(
    r"(?P<id>\b(?:AKIA|ASIA)[0-9A-Z]{12,})"
    r"|(?P<url>(?<=://)[^/\s:@]+:[^/\s@]+(?=@))"
    r"|(?P<header>\bAuthorization['\"]?\s*[:=]\s*['\"]?)[^'\"\n]+"
    r"|(?P<name>\b(?:X-Amz-(?:Signature|Credential|Security-Token)"
    r"|aws_?secret_?access_?key|aws_?session_?token|secret|password|token)['\"]?\s*[:=]\s*['\"]?)[^\s'\"&,}]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with credentials replaced by `***`: key ids, secrets, tokens, signed URLs, user:password@."""
    return _SECRETS.sub(lambda match: (match["name"] or match["header"] or "") + "***", text)


class MaskfleetError(Exception):
    """Everything raised on purpose; carries the command line's exit code."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class JobError(MaskfleetError):
    """The job, its input, its weights or its output are wrong."""

    exit_code = 2


class Refused(MaskfleetError):
    """A gate refused new weights."""

    exit_code = 3


class Locked(MaskfleetError):
    """Another run holds the output."""

    exit_code = 4


class Skipped(Locked):
    """Another run holds the output, and the job says to leave it at that."""

    exit_code = 0


class Unfinished(MaskfleetError):
    """The deadline came before the last shard; the same command goes on."""


class Stopped(Exception):
    """A run was asked to stop and has kept what is done; the same command goes on. No error: exit 130."""


class StorageError(MaskfleetError):
    """Storage failed, after retries."""


class NotFound(StorageError):
    """No such object."""


class Denied(StorageError):
    """The credentials are missing, wrong or not sufficient, or there is no such bucket."""


class Changed(StorageError):
    """The object is not the one that the plan saw."""


class Damaged(StorageError):
    """The object is not what a commit describes."""
