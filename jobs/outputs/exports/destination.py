"""The destination of an export: never in the output, and never where the next run looks for images."""

import re
from fnmatch import fnmatchcase

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.places import below

_MARK = re.compile(r"[*?\[]")
_WRITTEN = (".png", ".tif", "")
"""Endings of exported masks that an input may take for images; "" for a pattern without an ending."""


def refuse_unsafe(destination: str, *, output: str, images: str) -> None:
    """Refuse a destination that would mix up exported masks with other files.

    Args:
        destination: Path or URL to write to.
        output: Output of the job.
        images: Input of the job.

    Raises:
        JobError: The destination is inside the output or the input.
    """
    if below(destination, output) is not None:
        raise JobError(f"{destination} is inside the output {output}; export to another place")
    if _would_be_input(destination, images):
        raise JobError(
            f"{destination} is inside the input {images}, and the next run would take the masks for images; export to "
            "another place"
        )


def _would_be_input(destination: str, images: str) -> bool:
    parts = images.split("/")
    first = next((place for place, part in enumerate(parts) if _MARK.search(part)), len(parts))
    path = below(destination, "/".join(parts[:first]) or "/")
    if path is None or first == len(parts):
        return path is not None
    *folders, last = parts[first:]
    ending = last[last.rfind(".") :].lower() if "." in last else ""
    if ending not in _WRITTEN and not _MARK.search(ending):
        return False
    steps = path.split("/") if path else []
    if "**" in folders or last == "**":
        return True
    # Masks lie in the destination or in folders below it.
    return len(steps) <= len(folders) and all(
        fnmatchcase(step, folder) for step, folder in zip(steps, folders, strict=False)
    )
