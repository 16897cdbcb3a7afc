"""Tables and large numbers: facts, sums with their parts, tiles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maskfleet.jobs.pages.markup import Html, html, joined
from maskfleet.jobs.words import number


@dataclass(frozen=True)
class Line:
    """A line of a sum.

    Attributes:
        name: What is counted.
        count: How many.
        total: Whether the lines below it, up to the next total, are its parts.
    """

    name: str
    count: int
    total: bool = False


def sums(lines: Iterable[Line], *, caption: str) -> Html:
    """Return totals with their parts as a table.

    Args:
        lines: The lines.
        caption: Caption of the table.
    """
    return html(
        '<div class="scroll sums" tabindex="0"><table><caption>{caption}</caption><tbody>{lines}</tbody></table></div>',
        caption=caption,
        lines=joined(
            html(
                '<tr class="{kind}"><th scope="row">{name}</th><td class="number">{count}</td></tr>',
                kind="sum" if line.total else "part", name=line.name, count=number(line.count),
            )
            for line in lines
        ),
    )  # fmt: skip


def tiles(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Return a few numbers in large type: name, value, and a remark that may be empty."""
    shown = (
        html(
            '<div class="tile"><dt>{name}</dt><dd>{value}{more}</dd></div>',
            name=name,
            value=value,
            more=html("<small>{text}</small>", text=more) if more else Html(),
        )
        for name, value, more in entries
    )
    return html('<dl class="tiles">{shown}</dl>', shown=joined(shown))


def facts(rows: Iterable[tuple[str, str | Html]]) -> Html:
    """Return names and values as a table. Rows without a value are left out."""
    return html(
        '<table class="facts"><tbody>{rows}</tbody></table>',
        rows=joined(
            html('<tr><th scope="row">{name}</th><td>{value}</td></tr>', name=name, value=value)
            for name, value in rows
            if value
        ),
    )


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str | Html]], *, numbers: Iterable[int] = (), kind: str = ""
) -> Html:
    """Return a table with a row of headings.

    Args:
        heads: Headings of the columns.
        rows: Cells by row.
        numbers: Columns of numbers, aligned to the right.
        kind: Class of the style sheet; "cards" among its words shows a card for each row on a telephone.
    """
    right = set(numbers)
    classes = ["number" if place in right else "" for place in range(len(heads))]
    return html(
        '<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>",
        kind=kind,
        heads=joined(
            html('<th scope="col" class="{kind}">{head}</th>', kind=each, head=head)
            for head, each in zip(heads, classes, strict=True)
        ),
        rows=joined(
            html("<tr>{cells}</tr>", cells=joined(map(_cell, row, heads, classes)))
            for row in rows
        ),
    )  # fmt: skip


def _cell(value: str | Html, head: str, kind: str) -> Html:
    # A telephone shows some tables as a card for each row, with the heading beside each cell.
    return html('<td class="{kind}" data-head="{head}"><div>{value}</div></td>', kind=kind, head=head, value=value)
