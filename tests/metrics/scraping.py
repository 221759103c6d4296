"""What an agent answers over HTTP."""

from __future__ import annotations

import http.client
import re
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from kvtier.testing import AgentProcess
from tests.faults.waiting import wait_until

Values = dict[frozenset[str], float]


def metrics_target(agent: AgentProcess) -> str:
    """HOST:PORT; of its last start, for one that was given port 0."""
    pattern = re.compile(r"metrics at http://(\S+)/metrics")
    return wait_until(lambda: pattern.findall(agent.log), 10.0)[-1]


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
