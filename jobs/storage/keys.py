"""Keys as people type them: the whole, or any ending that only one image has."""

from collections.abc import Iterable

from maskfleet.jobs.errors import JobError

_SHOWN = 5


def chosen(ending: str, matching: Iterable[str]) -> str:
    """The key that an ending means: the key itself, else the only one with these last parts, else with these letters.

    Args:
        ending: As typed.
        matching: The keys that end so, each once.

    Raises:
        JobError: No key ends so, or several do; some are named.
    """
    matching = list(matching)
    if ending in matching:
        return ending
    parts = [key for key in matching if key.endswith(f"/{ending}")]
    found = parts or matching
    if not found:
        raise JobError(f"no image's key ends with {ending!r}; give more or less of it")
    if len(found) > 1:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise JobError(f"{ending!r} may be {', '.join(sorted(found)[:_SHOWN])}{more}; give more of the key")
    return found[0]
