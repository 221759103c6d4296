"""What an agent answers over HTTP."""

from __future__ import annotations

import http.client
import re
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from kvtier.testing import AgentProcess
from tests.faults.waiting import wait_until

Values = dict[frozenset[str], float]


def metrics_target(agent: AgentProcess, seconds: float = 10.0) -> str:
    """HOST:PORT, when it listens; of its last start."""
    pattern = re.compile(r"metrics at http://(\S+)/metrics")
    found: list[str] = wait_until(lambda: pattern.findall(agent.log), seconds)
    return found[-1]


def get(target: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection(target, timeout=20)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def scrape(target: str) -> dict[str, Values]:
    """By the names of samples, and by the values of their labels."""
    status, _, body = get(target, "/metrics")
    assert status == 200
    found: defaultdict[str, Values] = defaultdict(dict)
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            found[sample.name][frozenset(sample.labels.values())] = sample.value
    return found
