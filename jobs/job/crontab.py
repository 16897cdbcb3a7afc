"""The five fields of cron, parsed once, so that every generated schedule means the same times."""

import re
from typing import NamedTuple

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_NAMES = {
    "month": ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    "weekday": ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
}
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


class Crontab(NamedTuple):
    """Times to run: the allowed values of each field, None for all. Weekdays are 0 (Sunday) to 6."""

    minute: tuple[int, ...] | None
    hour: tuple[int, ...] | None
    day: tuple[int, ...] | None
    month: tuple[int, ...] | None
    weekday: tuple[int, ...] | None

    @classmethod
    def parse(cls, text: str) -> "Crontab":
        """Parse five fields of numbers, names, lists, ranges and steps, such as "30 2 * * mon-fri".

        Raises:
            ValueError: The text has another form.
        """
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ValueError("must be cron's five fields: minute hour day month weekday, such as '30 2 * * *'")
        return cls(*(_field(part, *field) for part, field in zip(parts, _FIELDS, strict=True)))

    def on_calendar(self, timezone: str) -> list[str]:
        """Return the same times as values of systemd's OnCalendar=.

        One value for each of day and weekday if both are restricted, since cron joins the two by "or".
        """
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
            raise ValueError(f"{item!r} is not a valid {name}")
        star, first, last, step = match.groups()
        start = low if star else _number(first, name, low, high)
        # A single value with a step is a range up to the end.
        stop = high - (name == "weekday") if star or (step and not last) else start
        stop = _number(last, name, low, high) if last else stop
        if stop < start or step == "0":
            raise ValueError(f"{item!r} contains no {name}")
        values.update(range(start, stop + 1, int(step or 1)))
    if name == "weekday":
        values = {value % 7 for value in values}
    return tuple(sorted(values))


def _number(text: str, name: str, low: int, high: int) -> int:
    names = _NAMES.get(name, [])
    value = names.index(text) + low if text in names else int(text) if text.isdecimal() else -1
    if not low <= value <= high:
        raise ValueError(f"{text!r} is not a valid {name}; give a value from {low} to {high}")
    return value
