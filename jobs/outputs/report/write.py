"""`report.html` of a run, written into the folder of the run or returned. Imports no torch."""

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.ledger.runs import on_overlap, stored_runs
from maskfleet.jobs.outputs.report.beside import beside, finished_nights
from maskfleet.jobs.outputs.report.gathered.material import Material, gather
from maskfleet.jobs.outputs.report.gathered.nights import FIGURES
from maskfleet.jobs.outputs.report.page import page
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage

REPORT = "report.html"
"""File with the report of a run, in the run's folder."""

NIGHTS = "nights.html"
"""File with several nights beside each other, in the folder of the newest of them."""


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
        return storage.url(path), write(lock.fence.storage, material)


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


def write(storage: Storage, material: Material) -> bytes:
    """Write the report of a run, and its figures for later reports. Returns the page.

    Args:
        storage: Output storage, fenced.
        material: Material of the report.
    """
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
