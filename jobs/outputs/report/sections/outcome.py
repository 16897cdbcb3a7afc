"""The outcome of a run: in a sentence, in a few numbers, and every image accounted for."""

from collections.abc import Iterator, Mapping
from typing import Any

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.report.gathered.material import Material
from maskfleet.jobs.outputs.report.gathered.money import money
from maskfleet.jobs.pages import tables
from maskfleet.jobs.pages.charts import Part, stacked
from maskfleet.jobs.pages.markup import Html, html, joined
from maskfleet.jobs.pages.tables import Line, sums
from maskfleet.jobs.words import counted, duration, moment, number, percent

_EXIT = {0: "Exit code 0: complete.", 1: "Exit code 1: incomplete."}

_REASONS = {
    "new": "new images",
    "changed": "changed since they were done",
    "stale": "done before with other weights or settings",
    "failed": "failed before, tried again",
    "redo": "named by maskfleet redo",
}


def head(material: Material) -> Html:
    """Return the heading with the outcome in a sentence."""
    kind, word, sentence = _verdict(material)
    return html(
        "<h1>{title}</h1>"
        '<p class="soft">Run <span class="key">{run}</span>, started {created}{finished}</p>'
        '<div class="verdict"><span class="pill {kind}">{word}</span><p>{sentence}</p></div>',
        title=title(material), run=material.run.run_id, kind=kind, word=word,
        created=moment(material.run.created), sentence=sentence,
        finished=f", finished {moment(material.summary['finished'])}" if material.summary else "",
    )  # fmt: skip


def title(material: Material) -> str:
    """Return the name of the job and the day of the run; without a name, the last parts of its input."""
    job = material.run.job
    name = str(job.get("name", ""))
    if name in {"", Job.model_fields["name"].default}:
        name = "/".join(str(job["input"]).rstrip("/").split("/")[-2:])
    return f"{name}, {material.run.created[:10]}"


def _verdict(material: Material) -> tuple[str, str, str]:
    summary = material.summary
    if material.problem:
        return "bad", "Set aside", f"This run cannot be finished: {material.problem}. Later runs do its images again."
    if not summary:
        done = f"{number(material.figures.images)} of {counted(material.planned, 'image')}"
        return "warn", "Unfinished", f"{done} have an outcome so far. Run the same command to resume."
    code = int(summary["exit_code"])
    meaning = _EXIT.get(code, f"Exit code {code}.")
    if not summary["images"]:
        return "good", "Nothing to do", f"Every image is up to date. {meaning}"
    if summary["status"] == "complete":
        return "good", "Complete", f"{_done(summary)} {meaning}"
    problems = " ".join(_problems(material.run.job, summary))
    return "bad", "Incomplete", f"{_done(summary)} {problems} {meaning}"


def _done(summary: Mapping[str, Any]) -> str:
    images, failed = int(summary["images"]), int(summary["failed"])
    if not failed:
        return "The image has a mask." if images == 1 else f"All {number(images)} images have a mask."
    return f"{number(images - failed)} of {counted(images, 'image')} have a mask, {number(failed)} failed."


def _problems(job: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    allowed = float(job.get("run", {}).get("max_error_rate", 0.01))
    share = summary["failed"] / summary["images"] if summary["images"] else 0.0
    if share > allowed:
        yield f"{percent(share)} failed, and run.max_error_rate allows {percent(allowed)}."
    if damaged := summary.get("damaged_containers", 0):
        yield f"{counted(damaged, 'tar or Parquet file')} cannot be read completely, so images are missing."
    if lost := summary.get("exports_failed", 0):
        yield f"{counted(lost, 'mask')} could not be exported ({summary.get('export_failure', '')})."


def tiles(material: Material) -> Html:
    """Return the outcome in a few numbers."""
    figures, summary = material.figures, material.summary
    found = [
        ("Images", number(material.planned), ""),
        ("With a mask", number(figures.ok), percent(figures.ok / figures.images) if figures.images else ""),
        ("Failed", number(figures.failed), percent(figures.failed / figures.images) if figures.images else ""),
    ]
    if summary and figures.images:
        share = summary.get("forward_share")
        bare = f"{percent(share)} of the bare forward pass" if share else ""
        found.append(("Images per second", f"{summary['images_per_second']:,.1f}", bare))
        start = sum(summary.get("start_seconds", {}).values())
        found.append(
            ("Processing time", duration(summary["seconds"]), f"first masks after {duration(start)}" if start else "")
        )
        if (cost := money(material.run.job, summary)) is not None:
            found.append(("Cost", cost.amount or "–", cost.words if cost.amount else f"{cost.words}; prices not set"))
    return tables.tiles(found)


def warnings(material: Material) -> Html:
    """Return the findings about the masks, if there are any."""
    found = [warning["message"] for warning in material.summary.get("warnings", []) if warning.get("message")]
    if not found:
        return Html()
    notes = joined(html('<p class="note">{message}</p>', message=message) for message in found)
    return html('<section id="warnings"><h2>Look at these masks</h2>{notes}</section>', notes=notes)


def account(material: Material) -> Html:
    """Return every image of the input by its ending. The numbers add up."""
    figures = material.figures
    whole = max(figures.images, 1)
    bar = stacked(
        [
            Part("part-done", figures.ok, f"{counted(figures.ok, 'image')} with a mask"),
            Part("part-failed", figures.failed, f"{counted(figures.failed, 'image')} failed"),
        ],
        whole=whole,
        summary=f"{counted(figures.ok, 'image')} with a mask, {number(figures.failed)} failed",
    )
    return html(
        '<section id="images"><h2>Every image accounted for</h2>{bar}{table}{notes}</section>',
        bar=bar if figures.images else Html(),
        table=sums(_lines(material), caption="What was in the input, and what became of it"),
        notes=joined(html('<p class="small soft">{note}</p>', note=note) for note in _notes(material.summary)),
    )  # fmt: skip


def _lines(material: Material) -> Iterator[Line]:
    figures, summary = material.figures, material.summary
    if summary:
        left = summary.get("left_alone", {})
        listed, images = int(summary["listed"]), int(summary["images"])
        if left:
            yield Line("Images, and files left alone", listed + sum(left.values()), total=True)
            for rule, count in left.items():
                yield Line(f"left alone: {rule}", count)
        yield Line("Images in the input", listed, total=True)
        if listed > images:
            selected = material.run.job.get("select", {})
            why = "not selected, or up to date" if any(selected.values()) else "up to date, done by earlier runs"
            yield Line(why, listed - images)
        for reason, count in summary.get("planned", {}).items():
            if count:
                yield Line(f"in this run: {_REASONS.get(reason, reason)}", count)
        yield Line("Images of this run", images, total=True)
    else:
        yield Line("Images planned so far", material.planned, total=True)
        if waiting := material.planned - figures.images:
            yield Line("without an outcome yet", max(waiting, 0))
    yield Line("done: with a mask", figures.ok)
    for failure in sorted(figures.failures.values(), key=lambda each: -each.count):
        yield Line(f"failed: {failure.error_class} ({failure.stage})", failure.count)


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    if not summary:
        return
    if gone := summary.get("gone", 0):
        have = "is" if gone == 1 else "are"
        yield f"{counted(gone, 'image')} of earlier runs {have} no longer in the input. Their masks stay."
    if not summary.get("listed_to_its_end", True):
        yield "The input was not listed to its end; the next run plans the rest."
    if summary.get("resumed"):
        yield "An earlier command began this run, and this one finished it."
    if lost := summary.get("attempts_lost", 0):
        yield (
            f"{counted(lost, 'attempt')} at a shard ended in a crash and was made again."
            if lost == 1
            else (f"{counted(lost, 'attempt')} at shards ended in a crash and were made again.")
        )
