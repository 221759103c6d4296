"""Rules for namespaces: `tenant/*: {ttl: 3600, host: {limit: 30%}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    model_validator,
)

from kvtier.config.size import format_size, parse_size
from kvtier.core.rules import NOTHING, Amount

_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
_PATTERN: Final = re.compile(rf"\*|{_NAME}/(\*|{_NAME})")
_PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?) ?%")
_MOST_TTL_SECONDS: Final = 2**31 - 1


def parse_amount(value: object) -> Amount:
    """`30%` of the tier's capacity, or a size; anything else is a ValueError."""
    if isinstance(value, Amount):
        return value
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        if float(match[1]) > 100:
            raise ValueError("a share is at most 100%")
        return Amount(share=float(match[1]) / 100)
    try:
        size_bytes = parse_size(value)
    except ValueError as error:
        raise ValueError("write a share of the tier as 30%, or a size as 64GiB") from error
    if size_bytes < 0:
        raise ValueError("a size is not negative")
    return Amount(size_bytes)


def format_amount(amount: Amount) -> str:
    """As `parse_amount` reads it."""
    return format_size(amount.size_bytes) if amount.share is None else f"{amount.share * 100:g}%"


AmountOf = Annotated[
    Amount,
    BeforeValidator(parse_amount),
    PlainSerializer(format_amount, return_type=str, when_used="json"),
]
_Ttl = Annotated[float, Strict(), Field(ge=1, le=_MOST_TTL_SECONDS, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, arbitrary_types_allowed=True
    )


class QuotaConfig(_Section):
    """Of one tier, for all namespaces of a rule together."""

    limit: AmountOf | None = None
    """Never more than this; None: as much as there is."""
    guaranteed: AmountOf = NOTHING
    """Others do not push them below this."""

    @model_validator(mode="after")
    def _limit_has_room_for_the_guarantee(self) -> QuotaConfig:
        limit, guaranteed = self.limit, self.guaranteed
        if limit is None or (limit.share is None) != (guaranteed.share is None):
            return self
        if guaranteed.of(1 << 40) > limit.of(1 << 40):
            raise ValueError(
                f"guaranteed ({format_amount(guaranteed)}) may not exceed "
                f"limit ({format_amount(limit)})"
            )
        return self


class NamespaceRuleConfig(_Section):
    """What holds for the namespaces of a pattern."""

    ttl: _Ttl | None = None
    """Seconds from its store on after which a block is gone from every tier."""
    host: QuotaConfig = QuotaConfig()
    disk: QuotaConfig = QuotaConfig()


def _check_patterns(
    rules: dict[str, NamespaceRuleConfig],
) -> dict[str, NamespaceRuleConfig]:
    for pattern in rules:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{pattern!r} names no namespaces; write tenant/name, tenant/* or *")
    return rules


NamespaceRuleConfigs = Annotated[dict[str, NamespaceRuleConfig], AfterValidator(_check_patterns)]


def check_guarantees(
    rules: Mapping[str, NamespaceRuleConfig], tier: str, capacity_bytes: int
) -> None:
    """Raises ValueError if more is guaranteed than there is, or a limit is below a guarantee."""
    total = 0
    for pattern, rule in rules.items():
        quota: QuotaConfig = getattr(rule, tier)
        name = f"{pattern}.{tier}.guaranteed"
        guaranteed = quota.guaranteed.of(capacity_bytes)
        if quota.limit is not None and guaranteed > quota.limit.of(capacity_bytes):
            raise ValueError(
                f"{name} ({format_amount(quota.guaranteed)}) exceeds its limit "
                f"({format_amount(quota.limit)}) at a capacity of {format_size(capacity_bytes)}"
            )
        total += guaranteed
        if total > capacity_bytes:
            raise ValueError(
                f"with {name} ({format_amount(quota.guaranteed)}) more is guaranteed "
                f"({format_size(total)}) than tiers.{tier}.capacity "
                f"({format_size(capacity_bytes)})"
            )
