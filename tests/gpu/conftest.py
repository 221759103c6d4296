"""Agents of these tests run in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc.aio
import pytest


@pytest.fixture(scope="session", autouse=True)
def _grpc_aio_started() -> Iterator[None]:
    """Makes gRPC for asyncio open what it keeps for as long as anything of it is in use."""

    async def start() -> None:
        grpc.aio.init_grpc_aio()

    asyncio.run(start())  # tests that ran before leave the main thread without a loop
    yield
    grpc.aio.shutdown_grpc_aio()
