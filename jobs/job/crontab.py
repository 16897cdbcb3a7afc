"""The five fields of cron, understood once, so that what is generated for other schedulers means the same."""

import re
from typing import NamedTuple

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_NAMES = {
    "month": ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    "weekday": ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
}
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


class Crontab(NamedTuple):
    """When to run; None for every value of a field. Weekdays are 0 (Sunday) … 6."""

    minute: tuple[int, ...] | None
    hour: tuple[int, ...] | None
    day: tuple[int, ...] | None
    month: tuple[int, ...] | None
    weekday: tuple[int, ...] | None

    @classmethod
    def parse(cls, text: str) -> "Crontab":
        """Five fields of numbers, names, lists, ranges and steps.

        Raises:
            ValueError: It is something else.
        """
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ValueError("must be cron's five fields: minute hour day month weekday, such as '30 2 * * *'")
        return cls(*(_field(part, *field) for part, field in zip(parts, _FIELDS, strict=True)))

    def on_calendar(self, timezone: str) -> list[str]:
        """The same for systemd's OnCalendar=, of which any may match: cron joins day and weekday by "or"."""
        days, months = _listed(self.day), _listed(self.month)
        time = f"{_listed(self.hour)}:{_listed(self.minute)}:00 {timezone}"
        if self.weekday is None:
            return [f"*-{months}-{days} {time}"]
        weekdays = ",".join(_DAYS[day] for day in self.weekday)
        by_weekday = f"{weekdays} *-{months}-* {time}"
        return [by_weekday] if self.day is None else [f"*-{months}-{days} {time}", by_weekday]


def _listed(values: tuple[int, ...] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02}" for value in values)


def _field(text: str, name: str, low: int, high: int) -> tuple[int, ...] | None:
    if text == "*":
        return None
    values: set[int] = set()
    for item in text.lower().split(","):
        match = re.fullmatch(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?", item)
        if not match:
            raise ValueError(f"{item!r} is no {name}")
        star, first, last, step = match.groups()
        start = low if star else _number(first, name, low, high)
        # A lone value with a step goes on to the end; without one it is itself.
        stop = high - (name == "weekday") if star or (step and not last) else start
        stop = _number(last, name, low, high) if last else stop
        if stop < start or step == "0":
            raise ValueError(f"{item!r} holds no {name}")
        values.update(range(start, stop + 1, int(step or 1)))
    if name == "weekday":
        values = {value % 7 for value in values}
    return tuple(sorted(values))


def _number(text: str, name: str, low: int, high: int) -> int:
    names = _NAMES.get(name, [])
    value = names.index(text) + low if text in names else int(text) if text.isdecimal() else -1
    if not low <= value <= high:
        raise ValueError(f"{text!r} is no {name}; it must lie in {low} … {high}")
    return value
