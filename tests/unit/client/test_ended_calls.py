"""A call that the agent ends, as it does when it stops."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.client.admin import AdminClient
from kvtier.errors import AgentUnavailableError


def _cancel(_request: bytes, context: Any) -> bytes:
    context.cancel()
    return b""


def test_it_says_that_the_agent_stops(tmp_path: Path) -> None:
    """gRPC cancels what has reached a server and not yet its handler; the caller did not."""
    address = f"unix:{tmp_path / 'admin.sock'}"
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        handlers: dict[str, Any] = {"GetStats": grpc.unary_unary_rpc_method_handler(_cancel)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("kvtier.v1.CacheAdmin", handlers),)
        )
        server.add_insecure_port(address)
        server.start()
        try:
            with AdminClient(address) as client, pytest.raises(AgentUnavailableError, match="stop"):
                client.get_stats()
        finally:
            server.stop(None).wait()
