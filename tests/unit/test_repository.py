"""What holds for the repository as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from kvtier import BlockStatus, Client, NamespaceSpec
from kvtier.config import AgentConfig, load_config
from kvtier.config.load import config_keys, section_keys
from kvtier.testing import AgentProcess

REPOSITORY = Path(__file__).parents[2]
SHIPPED_CONFIG = REPOSITORY / "configs" / "agent.yaml"
# Depends on the user and the environment, so the file explains it in a comment.
UNSET = {"socket_dir"}


def leaf_keys(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if f"{prefix}{name}" in section_keys():
            assert isinstance(value, Mapping)
            yield from leaf_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_shipped_configuration_has_every_key() -> None:
    text = SHIPPED_CONFIG.read_text()
    assert set(leaf_keys(yaml.safe_load(text))) == set(config_keys()) - UNSET
    assert all(f"\n# {key}: " in text for key in UNSET)


def test_the_shipped_configuration_has_the_defaults() -> None:
    written = load_config(SHIPPED_CONFIG, {}, ()).config
    assert written.model_dump(exclude=UNSET) == AgentConfig().model_dump(exclude=UNSET)


def test_every_shipped_key_is_explained() -> None:
    previous = ""
    for line in SHIPPED_CONFIG.read_text().splitlines():
        key = line.strip().partition(":")[0]
        is_leaf = bool(line.strip()) and not line.strip().startswith("#") and line[-1] != ":"
        assert not is_leaf or previous.strip().startswith("#"), f"{key} has no comment"
        previous = line


class _TimedAgent(AgentProcess):
    """Its log says what it imports."""

    command = ("-X", "importtime", "-m", "kvtier", "agent")


def test_an_agent_without_a_gpu_tier_imports_no_torch() -> None:
    with _TimedAgent() as agent:
        with Client(agent.address) as client:
            namespace = client.namespace(NamespaceSpec(name="a", block_bytes=(4096,)))
            assert namespace.store([bytes(32)], bytes(4096)) == [BlockStatus.OK]
            assert namespace.load_into([bytes(32)], bytearray(4096)) == [BlockStatus.OK]
        lines = agent.log.splitlines()
        assert "libtorch" not in Path(f"/proc/{agent.pid}/maps").read_text()
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "kvtier.agent.tiers.gpu" in imported
    assert not [each for each in imported if each.partition(".")[0] == "torch"]
    assert "kvtier.tiers.gpu" not in imported


@pytest.mark.parametrize("heavy", ["numpy", "pydantic", "torch", "rich", "yaml"])
def test_stats_starts_without(heavy: str) -> None:
    program = f"""
import sys
import kvtier.cli.app, kvtier.cli.stats, kvtier.client.admin
sys.exit({heavy!r} in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode() or f"{heavy} is imported"
