"""The page of a run: its sections in order."""

from collections.abc import Iterable

from maskfleet.jobs.outputs.report.gathered.material import Material
from maskfleet.jobs.outputs.report.sections import distributions, facts, failures, gallery, outcome, speed
from maskfleet.jobs.pages.document import document
from maskfleet.jobs.pages.gallery import DIALOG
from maskfleet.jobs.pages.markup import Html, html, joined

_NAVIGATION = {
    "images": "Images",
    "gallery": "Masks",
    "failures": "Failures",
    "distributions": "Distributions",
    "speed": "Speed",
    "cost": "Cost",
    "job": "Job",
}


def page(material: Material) -> bytes:
    """Return the report of a run as UTF-8 HTML."""
    sections = [
        outcome.warnings(material),
        outcome.account(material),
        gallery.gallery(material),
        failures.failures(material),
        distributions.distributions(material),
        speed.speed(material),
        speed.workers(material),
        speed.cost(material),
        facts.job(material),
    ]
    body = html(
        "<header>{head}{tiles}{navigation}</header><main>{sections}</main>{dialog}"
        "<footer>Written by maskfleet {version} from the records of the run. Nothing here is loaded from elsewhere."
        "</footer>",
        head=outcome.head(material), tiles=outcome.tiles(material), navigation=_navigation(sections),
        sections=joined(sections), dialog=DIALOG if material.pictures else Html(),
        version=material.record.get("versions", {}).get("maskfleet", ""),
    )  # fmt: skip
    return document(f"{outcome.title(material)}: report of a run", body)


def _navigation(sections: Iterable[Html]) -> Html:
    there = [name for name in _NAVIGATION if any(f'<section id="{name}">' in section[:80] for section in sections)]
    links = joined(html('<a href="#{name}">{words}</a>', name=name, words=_NAVIGATION[name]) for name in there)
    return html('<nav aria-label="Sections">{links}</nav>', links=links)
