"""What lies in deploy/monitoring: rules, and a dashboard for Grafana."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marship.engines.figures.families import HELP
from prometheus import promtool

FOLDER = Path(__file__).parents[4] / "deploy" / "monitoring"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "marship.json"
HISTOGRAMS = {name for name in HELP if re.fullmatch(r".*_request_\w+_seconds|.*_batch_size", name)}
NAMES = (set(HELP) - HISTOGRAMS) | {
    f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")
}


def expressions() -> Iterator[str]:
    """Those of the dashboard, with its variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    found = [one["expr"] for panel in board["panels"] for one in panel.get("targets", [])]
    found += [one["expr"] for one in board["annotations"]["list"] if "expr" in one]
    for one in found:
        filled = one.replace("$__rate_interval", "5m")
        yield filled.replace("$model", ".*").replace("$version", ".*")


def test_alerts_fire_when_they_should_and_are_silent_when_they_should() -> None:
    """Unit tests by promtool, with series in and alerts out, texts and all."""
    code, said = promtool(["test", "rules", FOLDER / "alerts.test.yml"])
    assert code == 0, said
    code, said = promtool(["check", "config", FOLDER / "prometheus.yml"])
    assert code == 0, said
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    tests = (FOLDER / "alerts.test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", tests))
    assert fired == alerts


def test_the_dashboards_expressions_are_prometheus_own(tmp_path: Path) -> None:
    """Promtool reads each as a rule; a dollar that is left is no PromQL."""
    rules = [{"record": f"panel:n{n}", "expr": one} for n, one in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    code, said = promtool(["check", "rules", "--lint=none", file])
    assert code == 0, said
    assert len(rules) > 20


@pytest.mark.parametrize("source", ["dashboard", "alerts"])
def test_nothing_asks_for_a_metric_that_nobody_shows(source: str) -> None:
    """Names of ours stand in HELP, and a histogram has three."""
    text = "\n".join(expressions())
    if source == "alerts":
        text = "\n".join(
            re.findall(r"expr: (.*(?:\n {10}.*)*)", (FOLDER / "alerts.yml").read_text())
        )
    found = set(re.findall(r"marship_\w+", text))
    assert len(found) > 8
    assert found <= NAMES


def test_panels_have_a_place_of_their_own() -> None:
    """Ids are unique, no two overlap on the grid of 24 columns, and each says what it shows."""
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
