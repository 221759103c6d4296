"""metrics.address, as it is written."""

from __future__ import annotations

import pytest

from kvtier.config import load_config
from kvtier.config.tcp_address import host_and_port
from kvtier.errors import ConfigError


@pytest.mark.parametrize(
    "address", ["9797", "127.0.0.1", "127.0.0.1:65536", "a b:1", ":9797", "::1:9797", "http://a:1"]
)
def test_a_wrong_address_is_named_with_what_is_right(address: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.address.* write HOST:PORT"):
        load_config(None, {}, [f"metrics.address='{address}'"])


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("0.0.0.0:9797", "0.0.0.0", 9797),
        ("[::1]:0", "::1", 0),
        ("node-1.local:80", "node-1.local", 80),
    ],
)
def test_hosts_and_ports(address: str, host: str, port: int) -> None:
    config = load_config(None, {}, [f"metrics.address='{address}'"]).config
    assert config.metrics.address == address
    assert host_and_port(address) == (host, port)


def test_it_can_be_switched_off() -> None:
    assert load_config(None, {}, ["metrics.address=null"]).config.metrics.address is None
