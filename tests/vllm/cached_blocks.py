"""The agent's blocks of a prompt, as a test reaches them beside the engines."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import cbor2
import numpy as np
from google.protobuf.json_format import MessageToDict

from kvtier.client.admin import AdminClient
from kvtier.client.client import Client
from kvtier.core.namespace import NamespaceSpec
from kvtier.memory import ByteArray

BLOCK_TOKENS = 32


def block_hashes(
    tokens: Sequence[int],
    block_tokens: int = BLOCK_TOKENS,
    extra: tuple[tuple[str, str], ...] | None = None,
) -> list[bytes]:
    """As vLLM hashes full blocks with sha256_cbor and no seed of the user's.

    `extra` goes into the first one: a cache salt does.
    """
    parent = _hash("vllm-none-hash")
    hashes = []
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        parent = _hash((parent, tuple(tokens[start : start + block_tokens]), extra))
        hashes.append(parent)
        extra = None
    return hashes


def _hash(value: Any) -> bytes:
    return hashlib.sha256(cbor2.dumps(value, canonical=True)).digest()


def namespaces(admin_address: str) -> list[NamespaceSpec]:
    """All that the agent has."""
    with AdminClient(admin_address) as admin:
        infos = admin.list_namespaces()
    specs = []
    for info in infos:
        fields = MessageToDict(
            info.spec, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        fields["block_bytes"] = tuple(map(int, fields["block_bytes"]))
        specs.append(NamespaceSpec(**fields))
    return specs


def read(address: str, spec: NamespaceSpec, hashes: Sequence[bytes]) -> ByteArray:
    """[blocks, block_bytes]"""
    blocks = np.zeros((len(hashes), spec.block_bytes[0]), np.uint8)
    with Client(address, timeout_seconds=10.0) as client:
        statuses = client.namespace(spec).load_into(hashes, blocks)
    assert set(statuses) == {1}, statuses
    return blocks


def replace(
    address: str,
    admin_address: str,
    spec: NamespaceSpec,
    hashes: Sequence[bytes],
    blocks: ByteArray,
) -> None:
    """Evicts the blocks from all tiers and stores others in their place."""
    with AdminClient(admin_address) as admin:
        admin.evict_blocks(f"{spec.tenant}/{spec.name}", list(hashes))
    with Client(address, timeout_seconds=10.0) as client:
        statuses = client.namespace(spec).store(hashes, blocks)
    assert set(statuses) == {1}, statuses


def stored_blocks(address: str, spec: NamespaceSpec, hashes: Sequence[bytes]) -> int:
    """How many leading blocks are cached."""
    with Client(address, timeout_seconds=10.0) as client:
        return client.namespace(spec).lookup(hashes).matched
