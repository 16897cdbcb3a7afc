"""Numbers, times and sizes in words for people."""

from datetime import UTC, datetime

_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def number(value: float) -> str:
    """Return a count with separators: 1,234,567."""
    return f"{value:,.0f}"


def counted(value: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is 1: "1 image", "1,200 images"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time span: "0.8 s", "12 s", "3 min 20 s", "5 h 12 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60:,} h"


def size(count: float) -> str:
    """Return a number of bytes: "512 bytes", "1.2 MB"."""
    if count == 1:
        return "1 byte"
    value = float(count)
    for unit in _BYTES:
        if value < 999.5 or unit == _BYTES[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


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
