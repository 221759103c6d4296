"""`kvtier warm` against an agent with DISK."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from tests.crash.agents import disk_agent, flush, restart, store
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.waiting import wait_until
from tests.unit.cli.command import kvtier

SPEC, HASHES = spec_of("small", 64 << 10), hashes_of("chain", 16)
OTHERS = hashes_of("other", 16)


def test_blocks_on_disk_are_warmed_and_counted(tmp_path: Path) -> None:
    with disk_agent(
        tmp_path / "agent", host="32MiB", disk="256MiB", prefetch__max_in_flight="1MiB"
    ) as agent:
        with Client(agent.address, timeout_seconds=10.0) as client:
            store(client, SPEC, HASHES)
            store(client, SPEC, OTHERS)
        with AdminClient(agent.admin_address) as admin:
            flush(admin)
        agent.stop()
        restart(agent)
        names = [each.hex() for each in HASHES]
        options = ("--wait", "--timeout", "20", "--address", agent.admin_address)
        done = kvtier("warm", f"{SPEC.tenant}/{SPEC.name}", *names[:8], *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "8 of 8 blocks accepted, 8 in HOST\n"
        unknown = hashes_of("unknown", 2)[0].hex()
        done = kvtier("warm", SPEC.label, *names, unknown, "--json", *options)
        assert json.loads(done.stdout) == {"accepted_count": 16, "ready_count": 16}
        with Client(agent.address, timeout_seconds=10.0) as client:
            namespace = client.namespace(SPEC)
            assert namespace.lookup(HASHES).runs == ((Tier.HOST, 16),)
            with namespace.load(HASHES[:4]) as loaded:
                assert loaded.count == 4
        told = json.loads(kvtier("stats", "--json", "--address", agent.admin_address).stdout)
        host = told["tiers"][0]
        assert (host["prefetched_count"], host["prefetch_used_count"]) == (16, 4)
        assert "prefetch used 4" in " ".join(
            kvtier("stats", "--address", agent.admin_address).stdout.split()
        )
        with Client(agent.address, timeout_seconds=10.0) as client:
            namespace = client.namespace(SPEC)
            assert namespace.lookup(OTHERS, prefetch=True).runs == ((Tier.DISK, 16),)
            wait_until(lambda: namespace.lookup(OTHERS).runs == ((Tier.HOST, 16),), 10.0)
        nowhere = kvtier("warm", "default/nothing", *names, "--address", agent.admin_address)
        assert nowhere.returncode == 1
        assert "no namespace 'default/nothing'" in nowhere.stderr


@pytest.mark.parametrize(
    ("hashes", "message"),
    [
        (["xyzx"], "HASH xyzx: write it in hexadecimal"),
        (["ab" * 16, "ab" * 17], "HASH: all hashes must have one length"),
    ],
)
def test_a_wrong_hash_is_named(hashes: list[str], message: str) -> None:
    done = kvtier("warm", "default/m", *hashes)
    assert done.returncode == 2
    assert message in done.stderr
