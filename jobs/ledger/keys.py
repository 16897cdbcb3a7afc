"""Keys as people type them: a full key, or any ending that only one image has."""

from collections.abc import Iterable

from maskfleet.jobs.errors import JobError

_SHOWN = 5


def chosen(ending: str, matching: Iterable[str]) -> str:
    """Return the key that an ending stands for.

    A full key wins, then the only key ending in these path components, then the only key ending in these characters.

    Args:
        ending: Text as typed.
        matching: Distinct keys with this ending.

    Raises:
        JobError: No key ends so, or several do. The message names some of them.
    """
    matching = list(matching)
    if ending in matching:
        return ending
    parts = [key for key in matching if key.endswith(f"/{ending}")]
    found = parts or matching
    if not found:
        raise JobError(f"no image key ends with {ending!r}; correct it")
    if len(found) > 1:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise JobError(f"{ending!r} matches {', '.join(sorted(found)[:_SHOWN])}{more}; give more of the key")
    return found[0]
