"""Agents of these tests run in this process."""

from __future__ import annotations

from collections.abc import Iterator

import grpc.aio
import pytest


@pytest.fixture(scope="session", autouse=True)
def _grpc_aio_started() -> Iterator[None]:
    """Makes gRPC for asyncio open what it keeps for as long as anything of it is in use."""
    grpc.aio.init_grpc_aio()
    yield
    grpc.aio.shutdown_grpc_aio()
