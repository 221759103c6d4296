"""Behaviour of `kvtier.tiers.cluster.url`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.tiers.cluster.url import (
    Address,
    Credentials,
    Deployment,
    TlsFiles,
    Transport,
    parse_url,
)


@pytest.mark.parametrize(
    ("text", "deployment", "transport", "addresses", "master", "db"),
    [
        ("redis://h", Deployment.SERVER, Transport.TCP, [("h", 6379)], "", 0),
        ("redis://h:1?db=3", Deployment.SERVER, Transport.TCP, [("h", 1)], "", 3),
        ("rediss://[::1]:7", Deployment.SERVER, Transport.TLS, [("::1", 7)], "", 0),
        (
            "redis+sentinel://a:1,b/m?db=2",
            Deployment.SENTINEL,
            Transport.TCP,
            [("a", 1), ("b", 26379)],
            "m",
            2,
        ),
        (
            "rediss+cluster://a:1,b:2",
            Deployment.CLUSTER,
            Transport.TLS,
            [("a", 1), ("b", 2)],
            "",
            0,
        ),
    ],
)
def test_each_form_is_taken_apart(
    text: str,
    deployment: Deployment,
    transport: Transport,
    addresses: list[tuple[str, int]],
    master: str,
    db: int,
) -> None:
    url = parse_url(text)
    assert (url.deployment, url.transport, url.master, url.db) == (
        deployment,
        transport,
        master,
        db,
    )
    assert url.addresses == tuple(Address(*each) for each in addresses)


def test_a_socket_has_a_path_and_embedded_has_nothing() -> None:
    assert parse_url("unix:///run/a%20b.sock").path == "/run/a b.sock"
    assert parse_url("embedded").deployment is Deployment.EMBEDDED
    assert parse_url("embedded").redacted() == "embedded"


@pytest.mark.parametrize(
    "text",
    [
        "redis://u:s3cret@h:1",
        "redis://:s3cret@h:1?db=1",
        "unix://u:s3cret@/run/r.sock",
        "redis+sentinel://:s3cret@a:1,b:2/m",
        "redis+cluster://u:s3cret@a:1,b:2",
    ],
)
def test_a_password_is_taken_and_never_shown(text: str) -> None:
    url = parse_url(text)
    assert url.password == "s3cret"
    assert url.redacted() == text.replace("s3cret", "***")
    assert "s3cret" not in f"{url!r} {url} {Credentials('u', 's3cret', 's3cret')!r}"


def test_a_password_may_hold_any_character() -> None:
    url = parse_url("redis://us%40er:p%2F%3A%23@h")
    assert (url.user, url.password) == ("us@er", "p/:#")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:6379",
        "http://h",
        "redis://",
        "redis://h:0",
        "redis://h:70000",
        "redis://h:x",
        "redis://a:1,b:2",
        "redis://h/1",
        "redis://h?db=-1",
        "redis://h?ssl=true",
        "redis://h#1",
        "redis://::1:6379",
        "redis://[::1",
        "unix://relative",
        "unix:///",
        "unix://",
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/m/n",
        "redis+cluster://a:1?db=1",
        "redis+cluster://a:1,,b:2",
    ],
)
def test_a_bad_url_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^tiers\.cluster\.url: "):
        parse_url(text)


@pytest.mark.parametrize("text", ["redis://u:s3cret@h:x", "htp://u:s3cret@h", "redis://u:s3cret@"])
def test_an_error_does_not_show_the_password(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_url(text)
    assert "s3cret" not in str(raised.value)


def test_bad_tls_files_are_refused_with_their_field(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    for files, field in [
        (TlsFiles(ca_file=bad), "tls_ca"),
        (TlsFiles(ca_file=tmp_path / "missing"), "tls_ca"),
        (TlsFiles(cert_file=bad), "tls_cert"),
        (TlsFiles(key_file=bad), "tls_key"),
    ]:
        with pytest.raises(ConfigError, match=rf"^tiers\.cluster\.{field}"):
            files.context()
