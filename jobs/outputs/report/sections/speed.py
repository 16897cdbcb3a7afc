"""The speed of a run: its rate over time, its stages, what held it back, and what it cost."""

from collections.abc import Iterator, Mapping
from typing import Any

from maskfleet.jobs.outputs.report.gathered.material import Material
from maskfleet.jobs.outputs.report.gathered.money import money
from maskfleet.jobs.pages import charts
from maskfleet.jobs.pages.markup import Html, html
from maskfleet.jobs.pages.tables import facts, table
from maskfleet.jobs.words import counted, duration, percent, size

_STAGES = {
    "fetch": "Read",
    "decode": "Decode",
    "segment": "Network",
    "device": "Device",
    "encode": "Encode",
    "write": "Write and commit",
}
_STEPS = {"plan": "planning", "ray": "starting Ray", "worker": "first worker", "shard": "first shard"}

_LEGEND = charts.legend(("part-busy", "working"), ("part-wait", "waiting for input"), ("part-room", "waiting for room"))


def speed(material: Material) -> Html:
    """Return the speed; nothing if no worker was measured."""
    summary = material.summary
    if not summary.get("stages") and material.pace is None:
        return Html()
    verdict = summary.get("limit") or ""
    sentence = html("<p><b>{verdict}.</b></p>", verdict=verdict[:1].upper() + verdict[1:]) if verdict else Html()
    return html(
        '<section id="speed"><h2>Speed</h2>{verdict}<div class="charts">{rate}</div>{stages}{facts}</section>',
        verdict=sentence, rate=_rate(material), stages=_stages(summary), facts=facts(_facts(summary)),
    )  # fmt: skip


def _rate(material: Material) -> Html:
    if material.pace is None:
        return Html()
    top = float(material.pace.rates.max())
    return html(
        "<figure><figcaption><b>Images per second</b><br>from the times of the finished shards</figcaption>{chart}"
        "</figure>",
        chart=charts.rate(
            material.pace.edges, material.pace.rates, summary=f"Images per second over time, at most {top:,.4g}"
        ),
    )  # fmt: skip


def _stages(summary: Mapping[str, Any]) -> Html:
    stages, whole = summary.get("stages", {}), float(summary.get("worker_seconds") or 0)
    if not stages or not whole:
        return Html()
    rows = [_stage(name, stages[name], whole) for name in [*_STAGES, *(set(stages) - set(_STAGES))] if name in stages]
    return html(
        '<h3>Stages</h3><p class="small soft">Stages overlap. Each bar is the time of all workers in one stage.</p>'
        "{legend}{table}",
        legend=_LEGEND,
        table=table(("Stage", "Share of the time", "Working", "At once"), rows, numbers=(2, 3), kind="stages"),
    )  # fmt: skip


def _stage(name: str, stage: Mapping[str, Any], seconds: float) -> tuple[str | Html, ...]:
    whole = seconds * stage["lanes"]
    parts = [
        charts.Part(kind, stage[key], f"{words} {percent(min(stage[key] / whole, 1))}")
        for kind, key, words in (
            ("part-busy", "busy_seconds", "working"),
            ("part-wait", "starved_seconds", "waiting for input"),
            ("part-room", "blocked_seconds", "waiting for room"),
        )
    ]
    words = _STAGES.get(name, name)
    bar = charts.stacked(parts, whole=whole, summary=f"{words}: {', '.join(part.words for part in parts)}")
    return (
        words,
        html('<div class="wide">{bar}</div>', bar=bar),
        f"{min(stage['busy_seconds'] / whole, 1):.0%}",
        str(stage["lanes"]),
    )


def _facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if forward := summary.get("forward"):
        size_ = f"{forward['width']}×{forward['height']} px"
        bare = f"{1 / forward['seconds_per_image']:,.1f} images/s at {size_} in {forward['precision']}"
        share = summary.get("forward_share")
        yield "Bare forward pass", f"{bare}; a worker of this run reached {percent(share)} of it" if share else bare
    if steps := summary.get("start_seconds"):
        words = ", ".join(f"{_STEPS.get(step, step)} {duration(seconds)}" for step, seconds in steps.items())
        yield "Start", f"{duration(sum(steps.values()))} to the first masks: {words}"
    if tuning := summary.get("tuning"):
        yield "Precision", "; ".join([tuning["precision"], *_agreements(tuning)])
    for shape, tried in summary.get("short_of_memory", {}).items():
        yield f"Memory, {shape} px", ", then ".join(tried)


def _agreements(tuning: Mapping[str, Any]) -> Iterator[str]:
    for each in tuning.get("compared", []):
        yield (
            f"{each['precision']} agrees with fp32 in {percent(each['agreement'])} of the pixels of "
            f"{counted(each['images'], 'image')}"
        )


def cost(material: Material) -> Html:
    """Return what the run cost; nothing if no worker was measured."""
    found = money(material.run.job, material.summary)
    if found is None:
        return Html()
    rows = [
        ("Machines", found.sentence),
        ("Masks", f"{size(material.figures.mask_bytes)} as PNG" if material.figures.mask_bytes else ""),
        ("Pixels", f"{material.figures.pixels / 1e6:,.1f} million" if material.figures.pixels else ""),
    ]
    return html(
        '<section id="cost"><h2>What it cost</h2>{facts}<p class="small soft">From the first shard of each worker to '
        "its last. Starting machines, requests and storage come on top.</p></section>",
        facts=facts(rows),
    )  # fmt: skip


def workers(material: Material) -> Html:
    """Return the images of each worker; nothing for a single one."""
    counts: dict[str, int] = {}
    for worker, images in material.figures.attempts.values():
        counts[worker] = counts.get(worker, 0) + images
    if len(counts) < 2:
        return Html()
    most = max(counts.values())
    rows = []
    for name, images in sorted(counts.items(), key=lambda item: -item[1])[:20]:
        words = counted(images, "image")
        bar = charts.stacked([charts.Part("part-busy", images, words)], whole=most, summary=words)
        wide = html('<div class="wide">{bar}</div>', bar=bar)
        rows.append((html('<bdi class="key">{name}</bdi>', name=name), wide, f"{images:,}"))
    busiest = ", the busiest 20" if len(counts) > 20 else ""
    return html(
        '<section id="workers"><h2>Workers</h2><p>{count}{busiest}.</p>{table}</section>',
        count=counted(len(counts), "worker"), busiest=busiest,
        table=table(("Worker", "Share", "Images"), rows, numbers=(2,), kind="stages"),
    )  # fmt: skip
