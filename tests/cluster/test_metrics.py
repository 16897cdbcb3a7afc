import json
import re
from pathlib import Path

from maskfleet.cluster.metrics import exported

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"


def test_the_dashboard_names_what_the_code_exports_and_all_of_it():
    text = DASHBOARD.read_text()
    named = set(re.findall(r"\bray_\w+", text))
    names = set(exported())
    assert named <= names
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} == {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in names
    }
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 9
