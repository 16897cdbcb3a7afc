"""The failures by kind, each with an example and the command that tries them again."""

import shlex

import pyarrow as pa

from maskfleet.jobs.ledger.catalog import final_failures, in_classes
from maskfleet.jobs.outputs.report.gathered.figures import FailureGroup
from maskfleet.jobs.outputs.report.gathered.material import Material
from maskfleet.jobs.pages.markup import Html, html
from maskfleet.jobs.pages.tables import table
from maskfleet.jobs.words import number

_KINDS = ("crash", "oom", "io", "decode")
"""Kinds of failures that `maskfleet retry` takes."""

_MOST = 30
_USUAL = "The next run of the job tries them again."


def failures(material: Material) -> Html:
    """Return the failures; nothing without any."""
    found = sorted(material.figures.failures.values(), key=lambda each: (-each.count, each.error_class))
    if not found:
        return Html()
    rows = [
        (
            html("<b>{name}</b><br><span class='soft small'>{stage}</span>", name=each.error_class, stage=each.stage),
            number(each.count),
            html('<bdi class="key">{key}</bdi><br>{message}', key=each.key, message=each.message),
            _remedy(material.output, each),
        )
        for each in found[:_MOST]
    ]
    more = (
        html('<p class="soft small">{n} further kinds are left out.</p>', n=len(found) - _MOST)
        if len(found) > _MOST
        else Html()
    )
    return html(
        '<section id="failures"><h2>Failures</h2>{table}{more}'
        '<p class="small soft">Every failed image has a row with its reason in the statistics.</p></section>',
        table=table(("Kind", "Images", "Example", "To try them again"), rows, numbers=(1,), kind="failures cards"),
        more=more,
    )  # fmt: skip


def _remedy(output: str, failure: FailureGroup) -> Html:
    again = "A run tries them again only if the file changes." if failure.error_class in final_failures() else _USUAL
    code = html("<code>{command}</code><br>", command=retry) if (retry := command(output, failure)) else Html()
    return html('{code}<span class="soft small">{again}</span>', code=code, again=again)


def command(output: str, failure: FailureGroup) -> str:
    """Return the command that tries the failures of a kind again; "" if only a run of the job does.

    Args:
        output: Output of the job.
        failure: The failures.
    """
    stage, error_class = pa.array([failure.stage]), pa.array([failure.error_class])
    for kind in _KINDS:
        if in_classes(stage, error_class, [kind])[0].as_py():
            return f"maskfleet retry {shlex.quote(output)} --class {kind}"
    return ""
