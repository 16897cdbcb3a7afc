"""`report.html` of a run: written at its end, and by `maskfleet report`."""

import logging

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.ledger.runs import on_overlap, stored_runs
from maskfleet.jobs.outputs.report.beside import beside, finished_nights
from maskfleet.jobs.outputs.report.gathered.material import Material, gather
from maskfleet.jobs.outputs.report.gathered.nights import FIGURES
from maskfleet.jobs.outputs.report.page import page
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.summary import RunSummary
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage

REPORT = "report.html"
"""File with the report of a run, in the run's folder."""

NIGHTS = "nights.html"
"""File with several nights beside each other, in the folder of the newest of them."""

_log = logging.getLogger("maskfleet")


def write_at_end(run: Run, summary: RunSummary) -> None:
    """Write the report of a run that has just ended, fenced like its `run.json`. Never changes the run's outcome.

    Args:
        run: The run, still locked.
        summary: Its outcome.
    """
    try:
        storage = Fence(run.output.storage, run.generation).storage
        material = gather(storage, run.run_id, profile=run.job.profile, anew=False)
        _write(storage, material)
    except Exception as error:  # the run is complete without it, whatever fails here
        _log.warning("the report of run %s could not be written: %s", run.run_id, error)


def report(output: str, *, run_id: str | None = None, to_output: bool, profile: str | None = None) -> tuple[str, bytes]:
    """Make the report of a run again.

    Args:
        output: Output of a job.
        run_id: The run; None for the newest.
        to_output: Whether to write it to the run's folder. This takes the output's lock.
        profile: AWS profile.

    Returns:
        Path or URL of the report in the output, and its content.

    Raises:
        JobError: There is no such run.
        Locked: A run holds the output, and the report is to be written to it.
    """
    storage = open_storage(output, profile=profile)
    chosen = run_id or _newest(storage, output)
    try:
        material = gather(storage, chosen, profile=profile, anew=True)
    except NotFound as error:
        raise JobError(f"there is no run {chosen} in {output}; see maskfleet list {output}") from error
    path = f"runs/{chosen}/{REPORT}"
    if not to_output:
        return storage.url(path), page(material)
    with locked(storage, on_overlap(storage)) as lock:
        return storage.url(path), _write(lock.fence.storage, material)


def report_of_nights(output: str, nights: int, *, to_output: bool, profile: str | None = None) -> tuple[str, bytes]:
    """Make a page with the last finished runs with images beside each other.

    Args:
        output: Output of a job.
        nights: Most runs shown.
        to_output: Whether to write it to the folder of the newest of them. This takes the output's lock.
        profile: AWS profile.

    Returns:
        Path or URL of the page in the output, and its content.

    Raises:
        JobError: There is no finished run with images.
        Locked: A run holds the output, and the page is to be written to it.
    """
    storage = open_storage(output, profile=profile)
    found = finished_nights(storage, nights)
    if not found:
        raise JobError(f"there is no finished run with images in {output}; correct the path, or run the job")
    path, data = f"runs/{found[-1].run.run_id}/{NIGHTS}", beside(found)
    if to_output:
        with locked(storage, on_overlap(storage)) as lock:
            lock.fence.storage.write(path, data)
    return storage.url(path), data


def _write(storage: Storage, material: Material) -> bytes:
    folder = f"runs/{material.run.run_id}"
    data = page(material)
    storage.write(f"{folder}/{REPORT}", data)
    if material.summary and material.figures.distributions is not None:
        storage.write(f"{folder}/{FIGURES}", material.figures.distributions.to_json())
    return data


def _newest(storage: Storage, output: str) -> str:
    newest = next(stored_runs(storage, newest_first=True), None)
    if newest is None:
        raise JobError(f"there is no run in {output}; correct the path")
    return newest.run_id
