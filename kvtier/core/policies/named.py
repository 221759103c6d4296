"""Policies by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final

from kvtier.core.policies.arc import Arc
from kvtier.core.policies.base import Blocks, Context, Policy
from kvtier.core.policies.hd import Hd
from kvtier.core.policies.lru import Lru
from kvtier.core.policies.s3fifo import S3Fifo
from kvtier.core.policies.sieve import Sieve
from kvtier.core.policies.tinylfu import TinyLfu

NewPolicy = Callable[[Blocks, Context], Policy]

POLICIES: Final[dict[str, NewPolicy]] = {
    "lru": Lru,
    "s3fifo": S3Fifo,
    "sieve": Sieve,
    "arc": Arc,
    "tinylfu": TinyLfu,
    "hd": Hd,
}


def find_policy(name: str) -> NewPolicy:
    """One of ours, or a class that a user names as `package.module:Class`.

    Raises ValueError if there is none of that name.
    """
    if name in POLICIES:
        return POLICIES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(POLICIES)
        raise ValueError(f"no policy {name!r}; write one of {known}, or package.module:Class")
    try:
        policy: NewPolicy = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {name!r} cannot be imported: {error}") from error
    return policy
