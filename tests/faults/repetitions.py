"""How often the failure tests repeat: in full, or a tenth with QUICK=1."""

from __future__ import annotations

import os

import pytest

QUICK = os.environ.get("QUICK", "0") not in ("", "0")

#: Of deadlines for the whole machine's work: in the quick form several tests share it.
PATIENCE = 3.0 if QUICK else 1.0

#: Of tests that take long, and that their suite's own target runs.
in_full = pytest.mark.skipif(QUICK, reason="takes long: not in the quick form")


def times(full: int) -> int:
    """This many; a tenth, but at least 3, in the quick form."""
    return max(3, full // 10) if QUICK else full


def seconds(full: float) -> float:
    """How long a load goes on; a quarter in the quick form."""
    return full / 4 if QUICK else full
