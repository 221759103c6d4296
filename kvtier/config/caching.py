"""What a tier keeps, and what it lets in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationInfo, field_validator

from kvtier.config.section import Section, Text
from kvtier.core.policies.named import find_policy

Admission = Literal["always", "second_hit", "cold_first_turn"]


def _can_be_found(policy: str) -> str:
    find_policy(policy)
    return policy


PolicyName = Annotated[Text, AfterValidator(_can_be_found)]


class CachingConfig(Section):
    """What a tier keeps."""

    policy: PolicyName = "lru"
    admission: Admission = "always"

    @field_validator("admission")
    @classmethod
    def _admission_suits_policy(cls, admission: Admission, info: ValidationInfo) -> Admission:
        if "policy" in info.data:
            find_policy(info.data["policy"], admission)
        return admission
