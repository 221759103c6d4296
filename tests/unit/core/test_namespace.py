"""Behaviour of `kvtier.core.namespace`."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from kvtier.core.namespace import MAX_BLOCK_BYTES, NamespaceSpec
from kvtier.errors import InvalidRequestError

FULL: dict[str, Any] = {
    "tenant": "acme",
    "name": "llama",
    "model": "meta/llama",
    "revision": "main",
    "dtype": "bf16",
    "block_tokens": 16,
    "block_bytes": (2097152, 4096),
    "layers": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "layout": "NHD",
    "shards": 2,
    "hash_algorithm": "sha256-chain-u32",
    "engine": "vllm",
    "extra": {"backend": "flash", "seed": "0"},
}


def spec(**changes: Any) -> NamespaceSpec:
    return NamespaceSpec(**{**FULL, **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", ""),
        ("tenant", "*"),
        ("tenant", "Acme"),
        ("name", ""),
        ("name", "a/b"),
        ("name", "-a"),
        ("name", "a" * 64),
        ("name", "a\n"),
        ("block_bytes", ()),
        ("block_bytes", (1,) * 257),
        ("block_bytes[1]", (1, 0)),
        ("block_bytes[0]", (MAX_BLOCK_BYTES + 1,)),
        ("shards", 0),
        ("shards", 65537),
        ("model", "m" * 1025),
        ("revision", "é" * 513),
        ("engine", "e" * 1025),
        ("extra", {str(number): "" for number in range(65)}),
        ("extra['k']", {"k": "v" * 1024}),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        spec(**{field.partition("[")[0]: value})
    assert str(raised.value).startswith(f"namespace.{field} ")


def test_the_smallest_and_the_largest_are_allowed() -> None:
    spec(name="a", block_bytes=(1,) * 256, shards=1, extra={})
    spec(name="a" * 63, block_bytes=(MAX_BLOCK_BYTES,), shards=65536, model="m" * 1024)


def test_the_layout_digest_never_changes() -> None:
    # Blocks on other nodes and on disk are found by it.
    golden = "8a20888a1aa738fa83f5e43cfb51404126e412d05af91633908ddfb5a7affdc0"
    assert spec().layout_digest.hex() == golden


def test_the_layout_digest_is_what_the_proto_says() -> None:
    layout = {key: value for key, value in FULL.items() if key not in {"tenant", "name"}}
    text = json.dumps(layout, sort_keys=True, separators=(",", ":"))
    assert spec().layout_digest == hashlib.sha256(text.encode()).digest()


def test_tenant_and_name_are_not_layout() -> None:
    other = spec(tenant="other", name="other")
    assert other.layout_digest == spec().layout_digest
    assert other.identity != spec().identity
    assert other.differences(spec()) == []


CHANGES: dict[str, Any] = {
    "model": "m2",
    "revision": "r2",
    "dtype": "fp8",
    "block_tokens": 32,
    "block_bytes": (2097152,),
    "layers": 33,
    "kv_heads": 1,
    "head_dim": 64,
    "layout": "HND",
    "shards": 1,
    "hash_algorithm": "other",
    "engine": "sglang",
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_every_layout_field_bears_on_the_digest_and_is_named(field: str) -> None:
    changed = spec(**{field: CHANGES[field]})
    assert changed.layout_digest != spec().layout_digest
    assert changed.differences(spec()) == [field]


def test_every_field_is_judged_here() -> None:
    assert {*CHANGES, "tenant", "name", "extra"} == set(FULL)
    assert set(FULL) == set(NamespaceSpec.__dataclass_fields__)


def test_entries_of_extra_are_named_one_by_one() -> None:
    other = spec(extra={"backend": "torch", "isa": "avx2"})
    assert other.differences(spec()) == ["extra.backend", "extra.isa", "extra.seed"]


def test_order_is_not_layout() -> None:
    swapped = dict(reversed(list(FULL["extra"].items())))
    assert spec(extra=swapped).layout_digest == spec().layout_digest


def test_a_spec_does_not_change_with_what_it_was_made_of() -> None:
    extra = {"a": "1"}
    made = spec(extra=extra)
    extra["a"] = "2"
    assert made.extra["a"] == "1"
    with pytest.raises(TypeError):
        made.extra["a"] = "3"  # type: ignore[index]


def test_selectors_name_a_namespace_or_one_layout_of_it() -> None:
    digest = spec().layout_digest.hex()
    for selector in ("acme/llama", f"acme/llama@{digest[:4]}", f"acme/llama@{digest.upper()}"):
        assert spec().matches(selector), selector
    for selector in ("acme", "llama", "acme/llam", "acme/llama@zz", "acme/llama/x", ""):
        assert not spec().matches(selector), selector
    assert spec().matches(spec().label)
