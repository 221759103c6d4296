"""Behaviour of `kvtier.rpc.conversion`: whatever is wrong with a message is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from kvtier.agent.sessions.grants import Granted
from kvtier.agent.sessions.namespaces import FIRST_GENERATION, Namespace
from kvtier.core.block import BlockKeys, BlockStatus, Lane, Tier
from kvtier.core.lease import Lease, LeaseKind
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import InvalidRequestError
from kvtier.rpc import conversion as convert
from kvtier.tiers.host import HostTier
from kvtier.v1 import block_pb2

HASHES = bytes(range(64))
SPEC = NamespaceSpec(name="hybrid", block_bytes=(4096, 8192), shards=3, extra={"a": "b"})


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    host = HostTier(1 << 20)
    groups = tuple(host.size_class(1, size) for size in SPEC.block_bytes)
    yield Namespace(1, SPEC, {Tier.HOST: groups}, FIRST_GENERATION)
    host.close()


def keys(**changes: Any) -> block_pb2.BlockKeys:
    fields: dict[str, Any] = {"hash_bytes": 16, "hashes": HASHES, **changes}
    return block_pb2.BlockKeys(**fields)


def test_keys_are_unpacked_in_their_order(namespace: Namespace) -> None:
    message = keys(group=1, shard=2, parent_hash=b"p" * 16, position=5)
    expected = tuple(HASHES[start : start + 16] for start in range(0, 64, 16))
    assert convert.keys_from(message, namespace, 4) == BlockKeys(Lane(1, 2), expected, b"p" * 16, 5)


@pytest.mark.parametrize("size", [16, 17, 32, 64])
def test_hashes_are_opaque_and_never_truncated(namespace: Namespace, size: int) -> None:
    hashes = (bytes(size), b"\xff" * size, b"a".ljust(size, b"\0"))
    message = keys(hash_bytes=size, hashes=b"".join(hashes))
    assert convert.keys_from(message, namespace, 8).hashes == hashes


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("hash_bytes", {"hash_bytes": 0}),
        ("hash_bytes", {"hash_bytes": 15}),
        ("hash_bytes", {"hash_bytes": 65}),
        ("hashes", {"hashes": b""}),
        ("hashes", {"hashes": HASHES[:-1]}),
        ("hashes", {"hashes": HASHES * 2}),
        ("group", {"group": 2}),
        ("shard", {"shard": 3}),
        ("parent_hash", {"parent_hash": b"p" * 15, "position": 1}),
        ("parent_hash", {"parent_hash": b"p" * 32, "position": 1}),
        ("parent_hash", {"parent_hash": b"p" * 16, "position": 0}),
        ("position", {"position": 2**32 - 1}),
        ("position", {"position": 2**32 - 4}),
    ],
)
def test_a_bad_field_of_keys_is_named(
    namespace: Namespace, field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        convert.keys_from(keys(**changes), namespace, 4)
    assert str(raised.value).startswith(f"keys.{field} ")
    with pytest.raises(InvalidRequestError) as raised:
        convert.entries_from([keys(), keys(**changes)], namespace, 8 if field != "hashes" else 7)
    assert str(raised.value).startswith(f"keys[1].{field} ")


def test_the_last_position_is_allowed(namespace: Namespace) -> None:
    message = keys(parent_hash=b"p" * 16, position=2**32 - 5)
    assert convert.keys_from(message, namespace, 4).position == 2**32 - 5


def test_a_call_without_keys_is_refused(namespace: Namespace) -> None:
    with pytest.raises(InvalidRequestError, match=r"^keys is empty"):
        convert.entries_from([], namespace, 4)


def test_entries_are_bounded_together(namespace: Namespace) -> None:
    assert len(convert.entries_from([keys(), keys(group=1)], namespace, 8)) == 2
    with pytest.raises(InvalidRequestError, match=r"^keys has 8 hashes .*max_batch_blocks"):
        convert.entries_from([keys(), keys(group=1)], namespace, 7)


def test_what_is_stored_in_mid_sequence_names_its_parent() -> None:
    hashes = (b"h" * 16,)
    convert.check_parents([BlockKeys(Lane(), hashes), BlockKeys(Lane(), hashes, b"p" * 16, 3)])
    with pytest.raises(InvalidRequestError, match=r"keys.parent_hash is empty"):
        convert.check_parents([BlockKeys(Lane(), hashes, b"", 3)])


@pytest.mark.parametrize("shard", [3, 2**32 - 1])
def test_a_shard_beyond_the_namespace_is_named(namespace: Namespace, shard: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"^shards is {shard}; .* 3 shards"):
        convert.check_shard(shard, namespace, "shards")


def test_a_spec_survives_the_wire() -> None:
    message = block_pb2.NamespaceSpec.FromString(convert.spec_message(SPEC).SerializeToString())
    assert convert.spec_from(message) == SPEC
    assert convert.spec_from(message).layout_digest == SPEC.layout_digest


def test_a_spec_has_the_defaults_of_the_proto() -> None:
    spec = convert.spec_from(block_pb2.NamespaceSpec(name="n", block_bytes=[1]))
    assert spec == NamespaceSpec(name="n", block_bytes=(1,))
    assert (spec.tenant, spec.shards) == ("default", 1)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("name", block_pb2.NamespaceSpec(block_bytes=[1])),
        ("tenant", block_pb2.NamespaceSpec(name="n", tenant="*", block_bytes=[1])),
        ("block_bytes", block_pb2.NamespaceSpec(name="n")),
        ("block_bytes[1]", block_pb2.NamespaceSpec(name="n", block_bytes=[1, 0])),
        ("shards", block_pb2.NamespaceSpec(name="n", block_bytes=[1], shards=1 << 20)),
    ],
)
def test_a_bad_field_of_a_spec_is_named(field: str, message: block_pb2.NamespaceSpec) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        convert.spec_from(message)
    assert str(raised.value).startswith(f"namespace.{field} ")


def test_every_field_of_the_proto_is_a_field_of_a_spec() -> None:
    assert set(NamespaceSpec.__dataclass_fields__) == set(
        block_pb2.NamespaceSpec.DESCRIPTOR.fields_by_name
    )


def test_durations_are_not_negative() -> None:
    assert convert.seconds_from(Duration(seconds=2, nanos=500_000_000), "ttl") == 2.5
    for bad in (Duration(seconds=-1), Duration(nanos=-1)):
        with pytest.raises(InvalidRequestError, match=r"^ttl is -"):
            convert.seconds_from(bad, "ttl")


def test_durations_and_times_survive_the_wire() -> None:
    for seconds in (0.0, 0.25, 10.0, -1.5):
        assert convert.duration(seconds).ToNanoseconds() == int(seconds * 1e9)
    assert convert.timestamp(1.5).ToNanoseconds() == 1_500_000_000


def test_tiers_are_known() -> None:
    assert convert.tiers_from([2, 3, 2], "tiers") == {Tier.HOST, Tier.DISK}
    assert convert.tiers_from([], "tiers") == frozenset()
    for bad in (0, 5):
        with pytest.raises(InvalidRequestError, match=f"^tiers .*{bad}"):
            convert.tiers_from([2, bad], "tiers")


def test_digests_are_whole() -> None:
    assert convert.digests_from(b"a" * 16 + b"b" * 16, 16) == [b"a" * 16, b"b" * 16]
    assert convert.digests_from(b"", 16) == []
    with pytest.raises(InvalidRequestError, match=r"^digests has 17 bytes"):
        convert.digests_from(b"a" * 17, 16)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65])
def test_presence_has_one_bit_per_key_lowest_first(count: int) -> None:
    presence = [index % 3 == 0 for index in range(count)]
    bits = convert.presence_bits(presence)
    assert len(bits) == -(-count // 8)
    for index in range(8 * len(bits)):
        bit = bits[index // 8] >> (index % 8) & 1
        assert bit == (index < count and presence[index])


def test_presence_is_read_as_the_client_reads_it() -> None:
    presence = [True, False, False, True, True, False, True, False, False, True]
    packed = np.frombuffer(convert.presence_bits(presence), np.uint8)
    assert np.unpackbits(packed, bitorder="little")[:10].astype(bool).tolist() == presence


def test_slots_have_one_entry_per_key(namespace: Namespace) -> None:
    size_class = namespace.groups[0]
    granted = Granted(Lease(1, LeaseKind.LOAD, 1, 1, 0.0))
    granted.add(size_class, [BlockStatus.ABSENT], [-1])
    message = convert.slots_message(granted)
    assert (list(message.extent), list(message.slot), list(message.generation)) == ([0], [0], [0])
    assert size_class.slot_bytes == 4096
