"""The job, the weights and the versions of a run."""

import json
from collections.abc import Mapping
from typing import Any

from maskfleet.jobs.errors import redacted
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.report.gathered.material import Material
from maskfleet.jobs.pages.markup import Html, html
from maskfleet.jobs.pages.tables import facts


def job(material: Material) -> Html:
    """Return the job with its weights and versions."""
    record = material.record
    weights, table = record["weights"], record["job"]
    rows: list[tuple[str, str | Html]] = [
        ("Input", redacted(str(table["input"]))),
        ("Output", redacted(str(table["output"]))),
        ("Weights", redacted(", ".join(table["weights"]))),
        ("Weights' id", html('<span class="key">{id}</span>', id=weights["id"])),
        *((name, text) for name, text in _lineage(weights.get("metadata", {}))),
        ("Fingerprint", html('<span class="key">{fingerprint}</span>', fingerprint=record["fingerprint"])),
        (
            "Commits by",
            "the workers"
            if record["commit_mode"] == "worker"
            else f"the driver: {record.get('commit_mode_reason', '')}",
        ),
        ("CPU threads", str(record.get("threads", ""))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())),
    ]
    return html(
        '<section id="job"><h2>Job, weights, versions</h2>{facts}<h3>Keys that differ from the defaults</h3>'
        '<pre tabindex="0"><code>{toml}</code></pre></section>',
        facts=facts(rows), toml=redacted(_toml(table)),
    )  # fmt: skip


_LINEAGE = {
    "base_name": "Trained from",
    "split": "Training data",
    "dice_mean": "Mean Dice on held-back images",
    "code": "Trained with",
}


def _lineage(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(words, str(metadata[name])) for name, words in _LINEAGE.items() if metadata.get(name)]


def _toml(table: Mapping[str, Any]) -> str:
    """Return the keys of a job that are not the defaults, as a job file holds them."""
    try:
        shown = Job.model_validate(table).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    except ValueError:  # of another version
        return json.dumps(table, indent=1, ensure_ascii=False)
    plain = [f"{key} = {_value(value)}" for key, value in shown.items() if not isinstance(value, dict)]
    sections = [
        "\n".join([f"\n[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items())])
        for name, section in shown.items()
        if isinstance(section, dict) and section
    ]
    return "\n".join([*plain, *sections])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_value(each)}' for key, each in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)
