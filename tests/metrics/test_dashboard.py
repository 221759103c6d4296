"""deploy/grafana/kvtier.json, as far as it can be judged without Grafana."""

from __future__ import annotations

import json
import re
from typing import Any

from kvtier.metrics.catalogue import METRICS
from tests.unit.test_repository import REPOSITORY

DASHBOARD = REPOSITORY / "deploy" / "grafana" / "kvtier.json"
_VARIABLES = {"$__rate_interval": "20s", "$job": ".*", "$instance": ".*", "$namespace": ".*"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> dict[str, str]:
    """By panel and legend, with Grafana's variables filled in."""
    found = {}
    for panel in panels():
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in _VARIABLES.items():
                expression = expression.replace(name, value)
            found[f"{panel['title']}: {target['legendFormat']}"] = expression
    return found


def test_expressions_name_metrics_that_there_are_and_leave_nothing_out() -> None:
    used = {name for each in expressions().values() for name in re.findall(r"kvtier_\w+", each)}
    shown = {name.removesuffix("_bucket") for name in used}
    assert shown <= METRICS.keys()
    assert not [each for each in expressions().values() if "$" in each]
    assert len(shown) > len(METRICS) / 2


def test_panels_do_not_overlap() -> None:
    places = set[tuple[int, int]]()
    for panel in panels():
        grid = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not places & mine, panel["title"]
        assert max(x for x, _ in mine) < 24
        places |= mine
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
