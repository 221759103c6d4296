"""What a lookup says of blocks in a slower tier."""

from __future__ import annotations

from pathlib import Path

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from tests.crash.agents import disk_agent, flush, restart, store
from tests.faults.blocks import hashes_of, spec_of


def test_blocks_on_disk_are_ready_later_than_those_in_host(tmp_path: Path) -> None:
    spec, hashes = spec_of("small", 64 << 10), hashes_of("chain", 16)
    with disk_agent(tmp_path / "agent", host="32MiB", disk="256MiB") as agent:
        with Client(agent.address, timeout_seconds=10.0) as client:
            store(client, spec, hashes)
            found = client.namespace(spec).lookup(hashes)
            assert found.runs == ((Tier.HOST, 16),)
            assert found.ready_after_seconds == (0.0,)
        with AdminClient(agent.admin_address) as admin:
            flush(admin)
        agent.stop()
        restart(agent)
        with Client(agent.address, timeout_seconds=10.0) as client:
            namespace = client.namespace(spec)
            found = namespace.lookup(hashes)
            assert found.runs == ((Tier.DISK, 16),)
            assert 0.0 < found.ready_after_seconds[0] < 10.0
            with namespace.load(hashes[:4]) as loaded:
                assert loaded.count == 4
            found = namespace.lookup(hashes)
            assert found.runs == ((Tier.HOST, 4), (Tier.DISK, 12))
            assert found.ready_after_seconds[0] == 0.0 < found.ready_after_seconds[1]
