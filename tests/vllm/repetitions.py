"""How much is repeated: in full, or less with QUICK=1, for a suite of a few minutes."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

QUICK = os.environ.get("QUICK", "0") not in ("", "0")


def either(full: T, quick: T) -> T:
    """What the form of the suite that runs takes."""
    return quick if QUICK else full
