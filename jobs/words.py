"""Numbers in the words of people: counts, durations, sizes, money, shares, times. Programs get plain numbers."""

from datetime import UTC, datetime

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def number(value: float) -> str:
    """Return a count with separators: 1,234,567."""
    return f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 mask" or "2 masks"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'x', 'sh', 'ch')) else 's'}"


def duration(seconds: float) -> str:
    """Return a duration with at most two units, such as "0.4 s", "12 s", "3 min 5 s" or "2 h 10 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 and whole % 60 else f"{round(whole / 60)} min"
    if whole < 48 * 3600:
        hours, minutes = divmod(round(whole / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(whole / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def size(count: int) -> str:
    """Return a number of bytes in decimal units, such as "812 bytes", "4.2 MB" or "37 GB"."""
    number = float(count)
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            break
        number /= 1000
    if unit == "bytes":
        return counted(count, "byte")
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"


def money(amount: float, currency: str) -> str:
    """Return an amount such as "12.30 USD", or "below 0.01 USD"."""
    return f"below 0.01 {currency}" if 0 < amount < 0.005 else f"{amount:,.2f} {currency}"


def percent(share: float) -> str:
    """Return a share as a percentage with enough digits to tell it from 0 and 100 %: "12.3 %", "99.97 %"."""
    value = 100 * share
    distance = min(value, 100 - value)
    if distance <= 0:
        return f"{value:.0f}\u00a0%"
    if distance < 0.001:
        return "<\u00a00.001\u00a0%" if value < 50 else ">\u00a099.999\u00a0%"
    digits = 1 if distance >= 1 else 2 if distance >= 0.1 else 3
    return f"{value:.{digits}f}\u00a0%"


def moment(iso: str) -> str:
    """Return a time such as "2026-11-28 02:00 UTC" from ISO 8601; other texts as they are."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at.tzinfo else f"{at:%Y-%m-%d %H:%M}"
