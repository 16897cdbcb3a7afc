"""Checks of installed packages, by the requirements in maskfleet's own metadata."""

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

from maskfleet.jobs.tools.doctor.contract import Finding, Subject

_SHOWN = ("torch", "ray", "pillow", "pyarrow", "s3fs")
_FASTER = {"obstore": "objects of S3", "simplejpeg": "JPEG", "zlib-ng": "masks"}
"""Packages of the extra `fast`, and what is slower without them."""

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)$")


def versions(subject: Subject) -> Finding:
    """Find the versions of Python, maskfleet and its libraries; older ones than required are a problem."""
    old = [
        f"{name} {found} (at least {least})" for name, least, found in _required() if _numbers(found) < _numbers(least)
    ]
    shown = ", ".join(f"{name} {_version(name) or 'missing'}" for name in _SHOWN)
    text = f"maskfleet {_version('maskfleet')}, Python {platform.python_version()}, {shown}"
    if old:
        return Finding("problem", f"too old or missing: {', '.join(old)}; {text}", "pip install -U maskfleet")
    return Finding("ok", text)


def faster(subject: Subject) -> Finding:
    """Find the optional packages for speed."""
    missing = [f"{name} (slower {what})" for name, what in _FASTER.items() if _version(name) is None]
    if missing:
        return Finding("warning", f"not installed: {', '.join(missing)}", "pip install 'maskfleet[fast]'")
    return Finding("ok", ", ".join(f"{name} {_version(name)}" for name in _FASTER))


def _required() -> list[tuple[str, str, str]]:
    """Return name, least version and installed version of each required package."""
    found = [_REQUIREMENT.match(requirement) for requirement in requires("maskfleet") or ()]
    return [(match[1], match[2], _version(match[1]) or "missing") for match in found if match]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version; () if there is none."""
    return tuple(int(part) for part in (re.match(r"[0-9.]*", text) or [""])[0].split(".") if part)
