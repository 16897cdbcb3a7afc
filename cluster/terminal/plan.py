"""A plan and its forecast, for people. Programs get JSON."""

from collections.abc import Iterator, Mapping
from typing import Any

from maskfleet.cluster.terminal.console import wrapped
from maskfleet.jobs.words import counted, duration, money, size

_NO_PRICES = "prices not set: see [prices] in the job file"


def lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a plan.

    Args:
        plan: The plan as JSON.
    """
    yield from _counts(plan)
    if plan["images"]:
        yield from _forecast(plan)
    for warning in plan["warnings"]:
        yield from wrapped("warning", warning)


def _counts(plan: Mapping[str, Any]) -> Iterator[str]:
    why = ", ".join(f"{count:,} {reason}" for reason, count in plan["why"].items())
    gone = f", {plan['gone']:,} gone" if plan["gone"] else ""
    yield from wrapped(
        "images",
        f"{plan['images']:,} to process{f' ({why})' if why else ''} of {plan['listed']:,} listed{gone}; "
        f"{plan['done']:,} need no work",
    )
    if plan["left_alone"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in plan["left_alone"].items())
        yield from wrapped("left", f"{counted(sum(plan['left_alone'].values()), 'file')} alone: {reasons}")
    yield f"input    {size(plan['bytes'])} to read, in {counted(plan['shards'], 'shard')}"
    yield f"listing  {duration(plan['listing_seconds'])}"


def _forecast(plan: Mapping[str, Any]) -> Iterator[str]:
    per_worker = plan["images_per_second_of_a_worker"]
    yield from wrapped(
        "sample",
        f"{counted(plan['sample'], 'image')} on {plan['device']}: {per_worker:.1f} images/s for one worker, ready "
        f"after {duration(plan['start_seconds'])}; busiest stage: {plan['busiest_stage']}",
    )
    if plan["expected_failures"]:
        failures = ", ".join(f"{count:,} {name}" for name, count in plan["expected_failures"].items())
        yield from wrapped("failures", f"about {failures}")
    yield from _table(plan)
    requests = ", ".join(f"{count:,} {kind}" for kind, count in plan["requests"].items())
    amounts = [
        money(plan["requests_cost"], plan["currency"]) if plan["requests_cost"] is not None else "",
        f"{money(plan['keeping_cost'], plan['currency'])} a month" if plan["keeping_cost"] is not None else "",
    ]
    yield from wrapped("output", f"{size(plan['output_bytes'])}{f', {amounts[1]}' if amounts[1] else ''}")
    yield from wrapped("requests", f"{requests}{f', {amounts[0]}' if amounts[0] else ''}")
    yield from wrapped("next run", plan["next_night"])


def _table(plan: Mapping[str, Any]) -> Iterator[str]:
    kind = "GPU" if "gpu_hours" in plan["workers"][0] else "worker"
    rows = [("workers", "time", f"{kind} hours", "cost", "waits for")]
    for each in plan["workers"]:
        hours = each["gpu_hours" if kind == "GPU" else "worker_hours"]
        cost = "–" if each["cost"] is None else money(each["cost"], plan["currency"])
        rows.append((str(each["workers"]), duration(each["seconds"]), f"{hours:,.2f}", cost, each["waits_for"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{'' if number else 'forecast':<8} {cells}"
    notes = ["the start of Ray is not included"]
    if plan["workers"][0]["cost"] is None:
        notes.append(_NO_PRICES)
    yield from wrapped("", "; ".join(notes))
