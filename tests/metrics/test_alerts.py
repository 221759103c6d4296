"""deploy/prometheus/alerts.yml: promtool's judgement, and what each alert fires for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvtier.cli.app import app
from kvtier.metrics.catalogue import METRICS
from tests.metrics.alert_scenarios import SCENARIOS, Scenario
from tests.unit.test_repository import REPOSITORY

RULES = REPOSITORY / "deploy" / "prometheus" / "alerts.yml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Debian's package prometheus has promtool"
)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_promtool
def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stderr


def test_every_alert_has_a_scenario() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert names == list(dict.fromkeys(names))
    assert sorted(names) == sorted(each.alert for each in SCENARIOS)


@needs_promtool
def test_each_alert_fires_for_what_it_is_meant_for_and_no_other_does(tmp_path: Path) -> None:
    files = []
    for step in {each.step_minutes for each in SCENARIOS}:
        tests = [_promtool_test(each) for each in SCENARIOS if each.step_minutes == step]
        interval = f"{step}m"
        rules = {"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": tests}
        files.append(tmp_path / f"{interval}.yml")
        files[-1].write_text(yaml.safe_dump(rules))
    done = promtool("test", "rules", *files)
    assert done.returncode == 0, done.stdout + done.stderr


def _promtool_test(scenario: Scenario) -> dict[str, Any]:
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    label = f'{{alertname="{scenario.alert}"}}'
    return {
        "name": scenario.alert,
        "interval": f"{scenario.step_minutes}m",
        "input_series": [
            {"series": name, "values": values} for name, values in scenario.series.items()
        ],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": f"{scenario.minutes}m",
                "exp_samples": [{"labels": label, "value": 1}],
            },
            {"expr": firing, "eval_time": f"{scenario.quiet_minutes}m", "exp_samples": []},
        ],
    }


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_and_which_command_shows_the_cause(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].startswith("{{ $labels.instance }}: ")
    commands = re.findall(r"`kvtier ([a-z]+)", alert["annotations"]["runbook"])
    assert commands, "no command"
    verbs = {each.name for each in app.registered_commands} | {
        each.name for each in app.registered_groups
    }
    assert set(commands) <= verbs
    used = re.findall(r"kvtier_[a-z_]+", alert["expr"])
    assert {each.removesuffix("_bucket") for each in used} <= METRICS.keys()
