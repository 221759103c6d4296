"""Agents and their cluster over TLS, with certificates on both sides and a password in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvtier.testing.redis_servers import Certificates, RedisServer, tls_binary
from kvtier.tiers.cluster.url import Transport
from tests.cluster.agents import (
    UNAVAILABLE,
    Outcome,
    load,
    peer,
    peers,
    store,
    wait_for_all,
)
from tests.cluster.load import SPEC
from tests.faults.blocks import hashes_of
from tests.faults.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(tls_binary() is None, reason="no redis-server with TLS"),
]


HASHES = hashes_of("over tls", 12)


def test_nodes_share_over_tls_and_a_stranger_has_nothing(tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    password_file.write_text("a secret\n")
    password_file.chmod(0o600)
    options = {"tls-auth-clients": "yes"}
    with RedisServer(Transport.TLS, password="a secret", options=options) as server:
        made = server.certificates
        assert made is not None
        settings: dict[str, Any] = {
            "tiers__cluster__tls_ca": made.ca_file,
            "tiers__cluster__tls_cert": made.cert_file,
            "tiers__cluster__tls_key": made.key_file,
            "tiers__cluster__password_file": password_file,
        }
        with peers(server.url, **settings) as (one, two):
            store(one.client.namespace(SPEC), HASHES)
            one.flush()
            namespace = two.client.namespace(SPEC)
            wait_for_all(namespace, HASHES, 10.0)
            assert load(namespace, HASHES) == Outcome(right=len(HASHES))
        stranger = Certificates(tmp_path)
        with peer(server.url, **{**settings, "tiers__cluster__tls_ca": stranger.ca_file}) as three:
            wait_until(lambda: three.state == UNAVAILABLE, 10.0)
            assert "certificate" in three.cluster.reason
            namespace = three.client.namespace(SPEC)
            store(namespace, HASHES)
            assert load(namespace, HASHES) == Outcome(right=len(HASHES))
