"""The section `listen`, and the addresses of clients."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvtier import Client, Tls
from kvtier.client.endpoint import Endpoint, endpoint_of
from kvtier.config import load_config
from kvtier.config.certificate_files import load_certificates
from kvtier.config.listen import ListenConfig
from kvtier.daemon.watched_files import WatchedFiles
from kvtier.errors import ConfigError, InvalidRequestError
from tests.access.agents import make_certificates

TLS = {name: f"/x/{name}" for name in ("tls_cert", "tls_key", "tls_client_ca")}
ADDRESS = {"address": "127.0.0.1:7400", "credentials_file": "/x/credentials"}


def load(**settings: object) -> ListenConfig:
    overrides = [f"listen.{key}={value}" for key, value in settings.items()]
    return load_config(Path(os.devnull), {}, overrides).config.listen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**ADDRESS, **TLS},
        {**ADDRESS, "insecure": "true"},
        {"admin_address": "'[::]:0'", "credentials_file": "/x/c", "insecure": "true"},
        TLS,
    ],
)
def test_a_listener_has_tls_or_says_that_it_has_none(settings: dict[str, object]) -> None:
    load(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ADDRESS, "need tls_cert, tls_key, tls_client_ca, for TLS on both sides"),
        ({**ADDRESS, "tls_cert": "/x/c"}, "with tls_cert it needs tls_key, tls_client_ca too"),
        ({**ADDRESS, **TLS, "insecure": "true"}, "insecure: true and tls_cert, tls_key, tls_clie"),
        ({**ADDRESS, "insecure": "yes please"}, "listen.insecure"),
        ({"address": "h:1", "insecure": "true"}, "need credentials_file"),
        ({"address": "7400"}, "listen.address = 7400"),
        ({"address": "h"}, "write HOST:PORT"),
        ({"address": "h:70000"}, "write HOST:PORT"),
        ({"address": "'::1:7400'"}, "write HOST:PORT"),
        ({"address": "unix:/x"}, "write HOST:PORT"),
        ({**ADDRESS, "admin_address": "127.0.0.1:7400"}, "are both 127.0.0.1:7400"),
        ({"tls_cert": "x"}, "write an absolute path"),
        ({"reload_interval": 0}, "greater than 0"),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**settings)
    assert "--set listen." in str(caught.value)
    assert message in str(caught.value)


def test_certificates_are_judged_before_they_are_used(tmp_path: Path) -> None:
    make_certificates(tmp_path, "other=DNS:other")
    files = {
        "tls_cert": tmp_path / "agent.pem",
        "tls_key": tmp_path / "agent.key",
        "tls_client_ca": tmp_path / "ca.pem",
    }
    found = load_certificates(ListenConfig.model_validate({**ADDRESS, **files}))
    assert found is not None
    assert found.key not in repr(found).encode()
    for change, message in (
        ({"tls_key": tmp_path / "other.key"}, r"no certificate and its key"),
        ({"tls_client_ca": tmp_path / "agent.key"}, r"listen.tls_client_ca: .* has no certificate"),
        ({"tls_cert": tmp_path / "none"}, r"listen.tls_cert: cannot read .*: No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_certificates(ListenConfig.model_validate({**ADDRESS, **files, **change}))
    (tmp_path / "agent.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"listen.tls_key: .* is open to others"):
        load_certificates(ListenConfig.model_validate({**ADDRESS, **files}))


def test_a_change_of_any_file_is_seen_once(tmp_path: Path) -> None:
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "link"
    one.write_text("1")
    two.write_text("2")
    link.symlink_to(one)
    files = WatchedFiles([link, tmp_path / "none"])
    assert not files.have_changed()
    (tmp_path / "new").symlink_to(two)
    (tmp_path / "new").rename(link)
    assert [files.have_changed(), files.have_changed()] == [True, False]
    (tmp_path / "none").touch()
    assert files.have_changed()
    link.unlink()
    assert files.have_changed()


# Clients.


@pytest.mark.parametrize(
    ("address", "more", "message"),
    [
        ("h:1", {}, "over TCP, give the files for TLS"),
        ("/x/worker.sock", {"token": "t"}, "takes neither token nor TLS"),
        ("unix:/x", {"tls": "insecure"}, "takes neither token nor TLS"),
        ("h", {}, "it must be unix:PATH"),
        ("unix:", {}, "it must be unix:PATH"),
        ("http://h:1", {"tls": "insecure"}, "it must be unix:PATH"),
        ("h:65536", {"tls": "insecure"}, "it must be unix:PATH"),
        ("h:1", {"tls": "ca.pem"}, "tls is a str; it must be kvtier.Tls"),
        ("h:1", {"tls": True}, "tls is a bool; it must be kvtier.Tls"),
        ("h:1", {"tls": "insecure", "transport": "memory"}, "only an agent of this node"),
        ("h:1", {"tls": "insecure", "token": "a\nb"}, "characters that no token has"),
    ],
)
def test_a_client_says_what_does_not_fit(
    address: str, more: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Client(address, **more)  # type: ignore[arg-type]


def test_the_environment_says_what_a_client_does_not(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("# mine\nsecret\n")
    environ = {
        "KVTIER_TOKEN_FILE": str(token),
        "KVTIER_TLS_CA": "ca",
        "KVTIER_TLS_CERT": "cert",
        "KVTIER_TLS_KEY": "key",
    }
    found = endpoint_of("h:1", None, None, environ)
    assert found == Endpoint("h:1", "secret", Tls("ca", "cert", "key"))
    assert "secret" not in repr(found)
    assert endpoint_of("h:1", "own", "insecure", environ) == Endpoint("h:1", "own", "insecure")
    assert endpoint_of("/x", None, None, environ) == Endpoint("unix:/x")
    assert endpoint_of("h:1", "", None, {"KVTIER_INSECURE": "1"}).tls == "insecure"
    with pytest.raises(ConfigError, match="with KVTIER_TLS_CA it needs KVTIER_TLS_CERT, KVTIER_T"):
        endpoint_of("h:1", None, None, {"KVTIER_TLS_CA": "ca"})
    with pytest.raises(ConfigError, match="KVTIER_INSECURE is 'yes'"):
        endpoint_of("h:1", None, None, {"KVTIER_INSECURE": "yes"})
