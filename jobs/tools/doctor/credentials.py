"""Check of the credentials for S3: where they come from, never what they are."""

import os

from maskfleet.jobs.storage.schemes import is_local
from maskfleet.jobs.tools.doctor.contract import Finding, Subject

_SOURCES = {
    "env": "environment variables (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS config file",
    "assume-role": "a role assumed by a profile",
    "assume-role-with-web-identity": "web identity (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "sso": "AWS single sign-on",
    "custom-process": "the profile's credential_process",
    "container-role": "the role of the container",
    "iam-role": "the role of this instance",
}
"""Names of botocore's providers in words."""


def credentials(subject: Subject) -> Finding | None:
    """Find the source of the credentials of output and weights, by the same chain as a run."""
    if (job := subject.job) is None or all(is_local(place) for place in (job.output, *job.weights)):
        return None
    return source_of(job.profile)


def input_credentials(subject: Subject) -> Finding | None:
    """Find the source of the credentials of the input, by the same chain as a run."""
    if (job := subject.job) is None or is_local(job.input):
        return None
    if job.input_options.anonymous:
        return Finding("ok", "none: the input is read anonymously")
    return source_of(job.input_options.profile or job.profile)


def source_of(profile: str | None) -> Finding:
    """Find the source of the credentials of an AWS profile.

    Args:
        profile: Name of the profile; None for the usual chain.
    """
    import botocore.session
    from botocore.exceptions import BotoCoreError

    named = profile or os.environ.get("AWS_PROFILE")
    by = f", profile {named}" if named else ""
    try:
        found = botocore.session.Session(profile=profile).get_credentials()
    except BotoCoreError as error:
        return Finding("problem", f"{type(error).__name__}{by}", "correct the profile in ~/.aws/config, or its name")
    if found is None:
        return Finding(
            "problem",
            f"no credentials{by}",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in the job",
        )
    source = _SOURCES.get(found.method, found.method)
    if found.method == "env" and os.environ.get("AWS_SESSION_TOKEN"):
        return Finding(
            "warning",
            f"from {source}, temporary: nothing renews them during a run",
            "use a profile, a role or web identity for runs longer than they are valid",
        )
    return Finding("ok", f"from {source}{by if found.method != 'env' else ''}")
