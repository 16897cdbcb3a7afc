"""Markup that escapes everything put into it. Keys, messages and names come from storage and may be hostile."""

import string
from collections.abc import Iterable
from html import escape
from typing import Any


class Html(str):
    """Text that is markup already and is inserted as it is."""

    __slots__ = ()


class _Escaping(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        text: str = super().format_field(value, format_spec)
        return text if isinstance(value, Html) else escape(text, quote=True)


_ESCAPING = _Escaping()


def html(template: str, /, **values: Any) -> Html:
    """Fill a template of markup. Every value is escaped unless it is `Html`.

    Args:
        template: Markup with fields in braces, as for `str.format`. Never text from outside.
        values: Values of the fields.
    """
    return Html(_ESCAPING.vformat(template, (), values))


def joined(parts: Iterable[Html], between: str = "") -> Html:
    """Return pieces of markup as one."""
    return Html(between.join(parts))
