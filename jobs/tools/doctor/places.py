"""Checks of a job's input and output: rights, create-if-absent, and the clock, each tried for real."""

import time
from collections.abc import Callable
from itertools import islice

from maskfleet.jobs.errors import Denied, NotFound, StorageError
from maskfleet.jobs.inputs.fetch import Inputs, options_of
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.commit import PROBES, nonce, probe
from maskfleet.jobs.storage.contract import Fault, Storage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.tools.doctor.contract import Finding, Subject

_DATA = b"written by maskfleet doctor; delete it"
_TRIED = 8
"""Images read until one can be read."""

_WORRYING, _WRONG = 60.0, 300.0
"""Seconds between two clocks. S3 refuses requests from 900 on."""


def input_rights(subject: Subject) -> Finding | None:
    """List the input up to its first images, and read one of them. Writes nothing."""
    if (job := subject.job) is None:
        return None
    source = Source(job.input, output=job.output, column=job.column, options=options_of(job), exclude=job.exclude)
    inputs, failure = Inputs(options_of(job)), None
    for record in islice(source, _TRIED):
        try:
            size = len(inputs.read(record))
        except (Fault, NotFound) as error:  # of this image alone
            failure = error
        else:
            return Finding("ok", f"list and get work in {job.input} (tried with {record.key}, {size} bytes)")
    if failure is not None:
        raise failure
    left = sum(source.left_alone.values())
    return Finding("problem", f"no image in {job.input}, {left} other files", "correct the input, or fill it")


def output_rights(subject: Subject) -> Finding | None:
    """Put, list, get and delete an object of its own in the output."""
    return None if subject.job is None else tried_rights(_output(subject.job))


def tried_rights(storage: Storage) -> Finding:
    """Put, list, get and delete an object of its own in a storage."""
    folder, path, what = *_own(), storage.url("")
    reasons = {
        "put": _refused(lambda: storage.write(path, _DATA)),
        "list": _refused(lambda: storage.names(folder)),
    }
    if not reasons["put"]:
        reasons["get"] = _refused(lambda: storage.read(path))
        kept = _refused(lambda: storage.delete(path))
        storage.remove_folder(folder)
    if missing := {verb: reason for verb, reason in reasons.items() if reason}:
        text, _, remedy = next(iter(missing.values())).rpartition("; ")
        return Finding("problem", f"{' and '.join(missing)} failed in {what} ({text})", f"{remedy}; see SECURITY.md")
    if kept:
        remedy = f"a run does not need it, gc does; delete {storage.url(path)} with another user"
        return Finding("warning", f"put, list and get work in {what}, delete is refused", remedy)
    return Finding("ok", f"put, list, get and delete work in {what}")


def commits(subject: Subject) -> Finding | None:
    """Find out whether the output honours create-if-absent, and so who commits."""
    if subject.job is None:
        return None
    storage = _output(subject.job)
    try:
        found = probe(storage)
    except Denied:  # `output_rights` says so
        return None
    finally:
        storage.remove_folder(PROBES)
    if found.mode == "worker":
        return Finding("ok", "create-if-absent works: every worker commits its own shards")
    return Finding(
        "warning",
        f"{found.why}: only the driver commits, one shard at a time",
        "start this job on one machine only, or choose another storage; see docs/guarantees.md",
    )


def clock(subject: Subject) -> Finding | None:
    """Compare this machine's clock with the storage's, by the modification time of a new object."""
    return None if subject.job is None else compared_clock(_output(subject.job), time.time)


def compared_clock(storage: Storage, now: Callable[[], float]) -> Finding | None:
    """Compare a clock with a storage's.

    Args:
        storage: Writable storage.
        now: The clock, in seconds since 1970.
    """
    folder, path = _own()
    before = now()
    try:
        storage.write(path, _DATA)
    except Denied:  # `output_rights` says so
        return None
    after = now()
    try:
        modified = storage.entry(path).modified
    finally:
        _refused(lambda: storage.delete(path))
        storage.remove_folder(folder)
    if modified is None:
        return None
    # The request took time, and S3 gives whole seconds.
    ahead = before - modified if modified < before else min(0.0, after - modified)
    text = f"this clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the storage's"
    if abs(ahead) < _WORRYING:
        return Finding("ok", f"this clock and the storage's differ by less than {_WORRYING:.0f} s")
    remedy = "set the clock of this machine, and keep it right with NTP"
    return Finding("warning" if abs(ahead) < _WRONG else "problem", text, remedy)


def _output(job: Job) -> Storage:
    return open_storage(job.output, profile=job.profile)


def _own() -> tuple[str, str]:
    """Return a new folder and an object in it. Checks run side by side, so each has its own."""
    folder = f".maskfleet-doctor-{nonce()}"
    return folder, f"{folder}/object"


def _refused(attempt: Callable[[], object]) -> str:
    """Try something. Return the error's line, or "" if it worked."""
    try:
        attempt()
    except (StorageError, OSError) as error:
        return str(error)
    return ""
