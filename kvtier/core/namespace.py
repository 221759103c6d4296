"""What makes two workers' bytes interchangeable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType

from kvtier.errors import InvalidRequestError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MAX_TEXT_BYTES = 1024
_MAX_EXTRA_ENTRIES = 64
_MAX_GROUPS = 256
MAX_BLOCK_BYTES = 1 << 30
#: Tenant, name, layout digest.
Identity = tuple[str, str, bytes]

_IDENTITY_ONLY = frozenset({"tenant", "name"})


@dataclass(frozen=True)
class NamespaceSpec:
    """A worker's description of its blocks; raises InvalidRequestError naming a bad field.

    `block_bytes` has one entry per KV group: the bytes of one block of one shard.
    """

    name: str
    block_bytes: tuple[int, ...]
    tenant: str = "default"
    model: str = ""
    revision: str = ""
    dtype: str = ""
    block_tokens: int = 0
    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    layout: str = ""
    shards: int = 1
    hash_algorithm: str = ""
    engine: str = ""
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name in ("tenant", "name"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise InvalidRequestError(
                    f"namespace.{name} is {getattr(self, name)!r}; it must be lower-case letters, "
                    "digits, '.', '_' and '-', at most 63, beginning with a letter or digit"
                )
        if isinstance(self.block_bytes, int):
            raise InvalidRequestError("namespace.block_bytes is a number; give one per KV group")
        if not 1 <= len(self.block_bytes) <= _MAX_GROUPS:
            raise InvalidRequestError(
                f"namespace.block_bytes has {len(self.block_bytes)} entries; "
                f"it needs one per KV group, 1 to {_MAX_GROUPS}"
            )
        for index, size in enumerate(self.block_bytes):
            if not 1 <= size <= MAX_BLOCK_BYTES:
                raise InvalidRequestError(
                    f"namespace.block_bytes[{index}] is {size}; it must be 1 to {MAX_BLOCK_BYTES}"
                )
        if not 1 <= self.shards <= 65536:
            raise InvalidRequestError(f"namespace.shards is {self.shards}; it must be 1 to 65536")
        self._check_texts()
        object.__setattr__(self, "block_bytes", tuple(self.block_bytes))
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    def _check_texts(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, str) and len(value.encode()) > _MAX_TEXT_BYTES:
                raise InvalidRequestError(
                    f"namespace.{each.name} is longer than {_MAX_TEXT_BYTES} bytes"
                )
        if len(self.extra) > _MAX_EXTRA_ENTRIES:
            raise InvalidRequestError(
                f"namespace.extra has {len(self.extra)} entries; at most {_MAX_EXTRA_ENTRIES}"
            )
        for key, value in self.extra.items():
            if len(key.encode()) + len(value.encode()) > _MAX_TEXT_BYTES:
                raise InvalidRequestError(
                    f"namespace.extra[{key[:40]!r}] is longer than {_MAX_TEXT_BYTES} bytes"
                )

    def layout_fields(self) -> dict[str, object]:
        """Every field that bears on the bytes: all but tenant and name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["block_bytes"] = list(self.block_bytes)
        values["extra"] = dict(self.extra)
        return {name: value for name, value in values.items() if name not in _IDENTITY_ONLY}

    @cached_property
    def layout_digest(self) -> bytes:
        """SHA-256 over the layout fields as compact JSON with sorted keys."""
        text = json.dumps(self.layout_fields(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    def differences(self, other: NamespaceSpec) -> list[str]:
        """Names of the layout fields in which the two differ; entries of `extra` one by one."""
        mine, theirs = self.layout_fields(), other.layout_fields()
        names = [name for name in mine if name != "extra" and mine[name] != theirs[name]]
        names += [
            f"extra.{key}"
            for key in sorted({*self.extra, *other.extra})
            if self.extra.get(key) != other.extra.get(key)
        ]
        return names

    @property
    def identity(self) -> Identity:
        """What tells namespaces apart."""
        return self.tenant, self.name, self.layout_digest

    @property
    def label(self) -> str:
        """`tenant/name@digest`, the digest cut to 8 hexadecimal digits."""
        return f"{self.tenant}/{self.name}@{self.layout_digest.hex()[:8]}"

    def needs_parents(self, group: int) -> bool:
        """Whether a block of this KV group is of no use without all that come before it.

        Only groups with a sliding window do without: their `extra["group.N"]` begins with `window`.
        """
        return not self.extra.get(f"group.{group}", "").startswith("window")

    def matches(self, selector: str) -> bool:
        """Whether `tenant/name` or `tenant/name@digest-prefix` names this namespace."""
        path, _, digest = selector.partition("@")
        return path == f"{self.tenant}/{self.name}" and self.layout_digest.hex().startswith(
            digest.lower()
        )


def namespace_digest(spec: NamespaceSpec) -> bytes:
    """32 bytes that stand for tenant, name and layout, whatever the generation id."""
    return _digest_of_parts(spec.tenant.encode(), spec.name.encode(), spec.layout_digest)


def identity_digest(spec: NamespaceSpec, generation_id: bytes) -> bytes:
    """32 bytes that stand for one generation of a namespace."""
    return _digest_of_parts(
        spec.tenant.encode(), spec.name.encode(), spec.layout_digest, generation_id
    )


def _digest_of_parts(*parts: bytes) -> bytes:
    """Every part behind its length, so that different parts are never the same bytes."""
    return hashlib.sha256(
        b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    ).digest()
