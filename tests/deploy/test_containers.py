"""Dockerfiles and the compose file: by their schema, and against the program and the repository."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from kvtier.config import load_config, parse_size
from tests.deploy.command_lines import DEPLOY, check

TOP = DEPLOY.parent
COMPOSE = DEPLOY / "compose"
DOCKERFILES = sorted((DEPLOY / "docker").iterdir())


def _instructions(file: Path) -> list[tuple[str, str]]:
    text = file.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(None, 1)[1]) for line in lines]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return document


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_the_program(file: Path) -> None:
    instructions = _instructions(file)
    for verb, rest in instructions:
        if verb == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((TOP / each).exists() for each in sources), rest
    last = dict(instructions)
    assert json.loads(last["ENTRYPOINT"]) == ["kvtier"]
    assert check(json.loads(last["CMD"])) == "agent"
    program, *arguments = json.loads(last["HEALTHCHECK"].removeprefix("CMD "))
    assert program == "kvtier"
    assert check(arguments) == "stats"
    assert last["USER"] == "10001:10001"


def test_the_compose_file_follows_its_schema(compose: dict[str, Any]) -> None:
    compose_spec.PyCompose.from_yaml((COMPOSE / "compose.yaml").read_text()).validate()
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= set(compose["services"])


def test_its_commands_are_those_of_the_program(compose: dict[str, Any]) -> None:
    assert check(compose["services"]["agent"]["command"]) == "agent"
    script = compose["services"]["worker"]["entrypoint"][1]
    assert (TOP / script.lstrip("/")).is_file()


def test_what_it_mounts_is_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), (name, source)
            else:
                assert source in compose["volumes"], (name, source)
        build = service.get("build")
        if build:
            assert (COMPOSE / build["context"] / build["dockerfile"]).is_file()


def test_its_agent_is_configured_as_its_container_is(compose: dict[str, Any]) -> None:
    agent = compose["services"]["agent"]
    config = load_config(COMPOSE / "agent.yaml", {}, ()).config
    mounted = [Path(volume.split(":")[1]) for volume in agent["volumes"]]
    assert all(path in mounted for path in config.tiers.disk.paths)
    _, _, rest = shlex.join(_image_environment()).partition("KVTIER_SOCKET_DIR=")
    assert Path(rest.split()[0]) in mounted
    spare_bytes = parse_size("512MiB")
    limit_bytes = parse_size(agent["mem_limit"].upper().replace("M", "MiB"))
    capacity = config.tiers.host.capacity
    assert isinstance(capacity, int)
    assert limit_bytes >= capacity + spare_bytes
    assert str(config.tiers.cluster.url).startswith("redis://valkey:")


def _image_environment() -> list[str]:
    [line] = [rest for verb, rest in _instructions(DOCKERFILES[0]) if verb == "ENV"]
    return line.split()


def test_prometheus_scrapes_where_the_agent_answers() -> None:
    scrapes = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    [target] = scrapes["scrape_configs"][0]["static_configs"][0]["targets"]
    address = load_config(COMPOSE / "agent.yaml", {}, ()).config.metrics.address
    assert address is not None
    assert target.split(":")[1] == address.split(":")[1]
    assert all(os.path.basename(each) == "alerts.yml" for each in scrapes["rule_files"])
