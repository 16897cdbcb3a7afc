"""Check of a toy: whether the job has a name of its own."""

from maskfleet.jobs.tools.doctor.contract import Finding, Subject


def own_name(subject: Subject) -> Finding | None:
    if subject.job is None:
        return None
    if subject.job.name == "maskfleet":
        return Finding("warning", "the job has no name of its own", "set name")
    return Finding("ok", f"the job is called {subject.job.name}")
