"""When the agent's own certificate expires."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvtier.config.certificate_expiry import certificate_expires_at
from tests.access.agents import make_certificates

_DAY_SECONDS = 86400


def expires_at(directory: Path, name: str) -> float | None:
    return certificate_expires_at(directory / f"{name}.pem", directory / f"{name}.key")


@pytest.mark.parametrize("days", [0, 5, 400])
def test_it_is_what_the_certificate_says_also_when_that_is_over(tmp_path: Path, days: int) -> None:
    make_certificates(tmp_path)
    make_certificates(tmp_path, "--days", str(days), "--host", "IP:127.0.0.1")
    found = expires_at(tmp_path, "agent")
    assert found is not None
    assert abs(found - time.time() - days * _DAY_SECONDS) < 120


def test_what_is_no_pair_has_none(tmp_path: Path) -> None:
    make_certificates(tmp_path, "one=DNS:one.example", "other=DNS:other.example")
    (tmp_path / "one.key").write_bytes((tmp_path / "other.key").read_bytes())
    assert expires_at(tmp_path, "one") is None
    assert expires_at(tmp_path, "nobody") is None
