"""While readers take all streams: what is refused, with which words, and what goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from kvtier import BlockStatus, Client
from kvtier.client.admin import AdminClient
from kvtier.errors import OverloadedError
from tests.faults.agents import running_agent
from tests.faults.blocks import MIB, hashes_of, payloads, spec_of
from tests.faults.raw_streamer import RawStreamer, written
from tests.faults.raw_worker import keys_message
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

_LARGE = spec_of("large", 2 * MIB)
_STREAMS = 8


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, str]]:
    """Of an agent all of whose streams are taken by readers that stand still."""
    with ExitStack() as stack:
        agent = stack.enter_context(
            running_agent(
                "192MiB",
                streams__max_streams=_STREAMS,
                streams__stall_seconds=600,  # the readers stand still for as long as tests take
                limits__max_session_share=1.0,
                leases__max_share=1.0,
            )
        )
        raw = stack.enter_context(RawStreamer(agent.directory))
        session, hashes = raw.open(_LARGE), hashes_of("read", 4)
        raw.write(session, written(_LARGE, hashes))
        for _ in range(_STREAMS):
            stream = raw.read(session, timeout=None, keys=keys_message(hashes))
            stack.callback(stream.cancel)
            next(stream)
        yield agent.address, agent.admin_address


def test_what_is_refused_says_when_to_come_again(address: tuple[str, str]) -> None:
    spec, hashes = spec_of("small"), hashes_of("small", 2)
    rows = payloads(spec, hashes)
    with Client(address[0]) as near, Client(address[0], transport="stream") as far:
        refused = {
            "prefetches": lambda: near.namespace(spec).prefetch(hashes),
            "stores": lambda: near.namespace(spec).store(hashes, rows),
            "stores by stream": lambda: far.namespace(spec).store(hashes, rows),
            "loads by stream": lambda: far.namespace(spec).load_into(hashes, rows),
        }
        for name, call in refused.items():
            with pytest.raises(OverloadedError, match=r"streams\.max_streams") as caught:
                call()
            assert 0 < caught.value.retry_after_seconds <= 5, name
        assert near.is_connected
        assert far.is_connected


def test_loads_and_lookups_go_on(address: tuple[str, str]) -> None:
    hashes = hashes_of("read", 4)
    out = np.zeros((4, 2 * MIB), np.uint8)
    with Client(address[0]) as client:
        namespace = client.namespace(_LARGE)
        assert namespace.lookup(hashes, prefetch=True).matched == 4
        assert namespace.load_into(hashes, out) == [BlockStatus.OK] * 4
        assert namespace.renew() == 1  # that of the copy, which the next call ends


def test_refusals_are_counted_by_kind(address: tuple[str, str]) -> None:
    with Client(address[0]) as client, AdminClient(address[1]) as admin:
        before = admin.get_stats()
        with pytest.raises(OverloadedError):
            client.namespace(_LARGE).prefetch(hashes_of("read", 4))
        with pytest.raises(OverloadedError):
            client.namespace(_LARGE).reserve(hashes_of("new", 4))
        wait_until(lambda: admin.get_stats().rejected_count == before.rejected_count + 2, 5)
        after = admin.get_stats()
        assert after.refused_prefetch_count == before.refused_prefetch_count + 1
        assert after.refused_store_count == before.refused_store_count + 1
        assert after.refused_load_count == before.refused_load_count
        assert after.refused_ask_count == 0
