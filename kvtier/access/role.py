"""What a credential is for."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """Each of them has methods of its own; see `access.policy`."""

    WORKER = "worker"
    OPERATOR = "operator"
    READER = "reader"
