"""The page of several nights: their outcomes beside each other, and each measure night by night."""

from collections.abc import Sequence
from typing import Any

from maskfleet.jobs.outputs.report.gathered.figures import Distributions
from maskfleet.jobs.outputs.report.gathered.money import money
from maskfleet.jobs.outputs.report.gathered.nights import Night, before
from maskfleet.jobs.outputs.report.sections.distributions import Measure, measures
from maskfleet.jobs.pages import charts
from maskfleet.jobs.pages.document import document
from maskfleet.jobs.pages.markup import Html, html, joined
from maskfleet.jobs.pages.tables import table
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.words import counted, duration, moment, number, percent

_LAST = "9"
"""A name after that of every run."""


def finished_nights(storage: Storage, count: int) -> list[Night]:
    """Return the last finished runs with images, the oldest first."""
    return before(storage, _LAST, count=count, anew=True)


def beside(nights: Sequence[Night]) -> bytes:
    """Return a page with some runs beside each other, as UTF-8 HTML.

    Args:
        nights: The runs, the oldest first; at least one.
    """
    newest = nights[-1]
    name = newest.run.job.get("name", "maskfleet")
    title = f"{name}: the last {counted(len(nights), 'night')}"
    incomplete = sum(night.summary["status"] != "complete" for night in nights)
    sentence = f"{incomplete} of {len(nights)} incomplete" if incomplete else "all complete"
    body = html(
        '<header><h1>{title}</h1><p class="soft">{first} to {last}</p>'
        '<div class="verdict"><span class="pill {kind}">{sentence}</span></div></header>'
        "<main><section><h2>Outcomes</h2>{outcomes}</section>{trends}</main>"
        "<footer>Written by maskfleet from the records of the runs. Nothing here is loaded from elsewhere.</footer>",
        title=title, first=moment(nights[0].run.created), last=moment(newest.run.created),
        kind="bad" if incomplete else "good", sentence=sentence, outcomes=_outcomes(nights), trends=_trends(nights),
    )  # fmt: skip
    return document(title, body)


def _outcomes(nights: Sequence[Night]) -> Html:
    heads = ("Run", "Outcome", "Images", "With a mask", "Failed", "Images/s", "Time", "Cost")
    return table(
        heads, [_outcome(night) for night in reversed(nights)], numbers=(2, 3, 4, 5, 6, 7), kind="outcomes cards"
    )


def _outcome(night: Night) -> tuple[str | Html, ...]:
    summary = night.summary
    failed = number(summary["failed"])
    if summary["failed"]:
        failed = f"{failed} ({percent(summary['failed'] / summary['images'])})"
    cost = money(night.run.job, summary)
    good = summary["status"] == "complete"
    return (
        html('{at}<br><span class="key soft">{run}</span>', at=moment(night.run.created), run=night.run.run_id),
        html('<span class="pill {kind}">{word}</span>', kind="good" if good else "bad", word=summary["status"]),
        number(summary["images"]),
        number(summary["ok"]),
        failed,
        f"{summary['images_per_second']:,.1f}",
        duration(summary["seconds"]),
        (cost.amount or "prices not set") if cost else "",
    )


def _trends(nights: Sequence[Night]) -> Html:
    found = [(night, night.distributions) for night in nights if night.distributions is not None]
    if not found:
        return Html()
    newest, last = found[-1]
    alike = [(night, each) for night, each in found if len(each.areas) == len(last.areas)]
    shown = joined(_trend(alike, measure) for measure in measures(last, newest.run.mask_values))
    return html(
        '<section><h2>Night by night</h2><p class="soft">Dots are medians over the images of a night, lines span the '
        'middle half of the images.</p><div class="charts">{failed}{shown}</div></section>',
        failed=_failed(nights), shown=shown,
    )  # fmt: skip


def _trend(nights: Sequence[tuple[Night, Distributions]], measure: Measure) -> Html:
    shown = []
    for night, distributions in nights:
        low, median, high = (measure.pick(distributions).quantile(share) for share in (0.25, 0.5, 0.75))
        shown.append(charts.Night(label=night.day, low=low, median=median, high=high))
    summary = f"{measure.title}: median {measure.words(shown[-1].median)} on the last of {counted(len(shown), 'night')}"
    return _figure(measure.title, charts.trend(shown, words=measure.tick, least=measure.least, summary=summary))


def _failed(nights: Sequence[Night]) -> Html:
    shares = [_share(night.summary) for night in nights]
    shown = [
        charts.Night(label=night.day, low=share, median=share, high=share)
        for night, share in zip(nights, shares, strict=True)
    ]
    summary = f"Share of failed images: {percent(shares[-1])} on the last of {counted(len(nights), 'night')}"
    return _figure("Failed images", charts.trend(shown, words=charts.percent_tick, least=0.01, summary=summary))


def _share(summary: Any) -> float:
    return float(summary["failed"] / summary["images"])


def _figure(title: str, chart: Html) -> Html:
    return html("<figure><figcaption><b>{title}</b></figcaption>{chart}</figure>", title=title, chart=chart)
