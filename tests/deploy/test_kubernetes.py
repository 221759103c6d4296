"""Kubernetes manifests: rendered by kustomize, against their schemas and the real program."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kvtier.config import AgentConfig, load_config, parse_size
from kvtier.sockets import WORKER_SOCKET, default_socket_dir
from kvtier.testing import AgentProcess
from tests.deploy.command_lines import DEPLOY, check
from tests.metrics.scraping import metrics_target

VERSION = "1.31"
#: What an agent takes beside HOST.
SPARE_BYTES = parse_size("2GiB")
#: Of the Prometheus operator: not among Kubernetes' own schemas.
FOREIGN = frozenset({"PodMonitor"})

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which has kustomize, is not installed"
)


@pytest.fixture(scope="module", params=["daemonset", "sidecar"])
def objects(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Kubernetes objects by kind."""
    done = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes" / request.param],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    [workload] = [each for kind, each in objects.items() if kind in ("DaemonSet", "Deployment")]
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def agent(pod: dict[str, Any]) -> dict[str, Any]:
    [found] = [each for each in _containers(pod) if each["name"] == "agent"]
    return found


@pytest.fixture(scope="module")
def config(objects: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AgentConfig:
    """What the agent's config map says."""
    file = tmp_path_factory.mktemp("config") / "agent.yaml"
    file.write_text(objects["ConfigMap"]["data"]["agent.yaml"])
    return load_config(file, {}, ()).config


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_objects_follow_their_schemas(objects: dict[str, Any]) -> None:
    for kind, each in objects.items():
        if kind not in FOREIGN:
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_commands_are_those_of_the_program(agent: dict[str, Any]) -> None:
    assert check(agent["args"]) == "agent"
    hook = agent.get("lifecycle", {}).get("preStop")
    if hook:
        program, *arguments = hook["exec"]["command"]
        assert program == "kvtier"
        assert check(arguments) == "drain"


def test_what_is_mounted_is_what_is_configured(
    pod: dict[str, Any], agent: dict[str, Any], config: AgentConfig
) -> None:
    volumes = {each["name"] for each in pod["volumes"]}
    for container in _containers(pod):
        assert {each["name"] for each in container.get("volumeMounts", [])} <= volumes
    mounts = [Path(each["mountPath"]) for each in agent["volumeMounts"]]
    written = [config.socket_dir, *config.tiers.disk.paths]
    assert all(any(path.is_relative_to(mount) for mount in mounts) for path in written)
    file = Path(agent["args"][agent["args"].index("--config") + 1])
    assert file.parent in mounts
    environment = {each["name"]: each["value"] for each in agent["env"]}
    assert default_socket_dir(environment) == config.socket_dir


def test_engines_reach_the_agent(pod: dict[str, Any], config: AgentConfig) -> None:
    assert config.socket_group == pod["securityContext"].get("fsGroup", 10001)
    for container in _containers(pod):
        for each in container.get("env", []):
            if each["name"] == "KVTIER_ADDRESS":
                assert each["value"] == f"unix:{config.socket_dir / WORKER_SOCKET}"
    assert config.workers


def test_memory_is_enough_for_what_is_configured(
    agent: dict[str, Any], config: AgentConfig
) -> None:
    capacity = config.tiers.host.capacity
    assert isinstance(capacity, int)
    limit_bytes = parse_size(agent["resources"]["limits"]["memory"].replace("Gi", "GiB"))
    assert limit_bytes >= capacity + SPARE_BYTES
    assert config.tiers.host.memory_reserve <= limit_bytes - capacity


def test_there_is_time_to_drain(pod: dict[str, Any], agent: dict[str, Any]) -> None:
    hook = agent.get("lifecycle", {}).get("preStop")
    if hook:
        assert float(hook["exec"]["command"][-1]) < pod["terminationGracePeriodSeconds"] / 2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The metrics' URL of an agent."""
    with AgentProcess(
        tmp_path_factory.mktemp("agent"), {"metrics.address": "127.0.0.1:0"}
    ) as agent:
        yield f"http://{metrics_target(agent)}"


def test_probes_and_scrapes_are_answered(
    objects: dict[str, Any], agent: dict[str, Any], config: AgentConfig, running: str
) -> None:
    [port] = agent["ports"]
    assert config.metrics.address == f"0.0.0.0:{port['containerPort']}"
    asked = [
        agent[probe]["httpGet"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe in agent
    ]
    assert {each["port"] for each in asked} == {port["name"]}
    paths = {each["path"] for each in asked}
    for endpoint in objects.get("PodMonitor", {"spec": {"podMetricsEndpoints": []}})["spec"][
        "podMetricsEndpoints"
    ]:
        assert endpoint["port"] == port["name"]
        paths.add(endpoint["path"])
    for path in paths:
        with urllib.request.urlopen(f"{running}{path}", timeout=10) as answer:
            assert answer.status == 200


def test_the_network_lets_through_what_is_used(
    objects: dict[str, Any], agent: dict[str, Any]
) -> None:
    policy = objects.get("NetworkPolicy")
    if policy is None:
        return
    labels = objects["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    [scrapes] = policy["spec"]["ingress"]
    assert [each["port"] for each in scrapes["ports"]] == [agent["ports"][0]["containerPort"]]
    monitor = objects["PodMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitor.items() <= labels.items()
