"""Policies and rules of admission by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final

from kvtier.core.policies.admission import Admission, ColdFirstTurn, SecondHit
from kvtier.core.policies.arc import Arc
from kvtier.core.policies.base import Blocks, Context, Policy
from kvtier.core.policies.hd import Hd
from kvtier.core.policies.lru import Lru
from kvtier.core.policies.s3fifo import S3Fifo
from kvtier.core.policies.sieve import Sieve
from kvtier.core.policies.tinylfu import TinyLfu

_METHODS: Final = [name for name in vars(Policy) if not name.startswith("_")]

NewPolicy = Callable[[Blocks, Context], Policy]

POLICIES: Final[dict[str, NewPolicy]] = {
    "lru": Lru,
    "s3fifo": S3Fifo,
    "sieve": Sieve,
    "arc": Arc,
    "tinylfu": TinyLfu,
    "hd": Hd,
}


ADMISSIONS: Final[dict[str, type[Admission]]] = {
    "always": Admission,
    "second_hit": SecondHit,
    "cold_first_turn": ColdFirstTurn,
}


def find_policy(name: str, admission: str = "always") -> NewPolicy:
    """One of ours, or a class that a user names as `package.module:Class`, behind a rule.

    Raises ValueError if there is none of that name, or the two do not go together.
    """
    new_policy = POLICIES.get(name) or _import_policy(name)
    if admission not in ADMISSIONS:
        raise ValueError(f"no admission {admission!r}; write one of {', '.join(ADMISSIONS)}")
    if admission == "always":
        return new_policy
    if new_policy is Hd:
        raise ValueError(f"hd admits by what blocks are worth to it; write always, not {admission}")
    if admission == "cold_first_turn" and not hasattr(new_policy, "insert_cold"):
        raise ValueError(f"cold_first_turn needs a policy with insert_cold; {name} has none")
    rule = ADMISSIONS[admission]
    return lambda blocks, context: rule(new_policy(blocks, context), blocks, context)


def _import_policy(name: str) -> NewPolicy:
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(POLICIES)
        raise ValueError(f"no policy {name!r}; write one of {known}, or package.module:Class")
    try:
        policy: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"policy {name!r} cannot be imported: {error}") from error
    missing = [each for each in _METHODS if not hasattr(policy, each)]
    if not isinstance(policy, type) or missing:
        what = f"has no {', '.join(missing)}" if isinstance(policy, type) else "is no class"
        raise ValueError(f"{name} {what}; see kvtier.core.policies.base.Policy")
    return policy
