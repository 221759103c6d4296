"""The certificates that `listen` names."""

from __future__ import annotations

import ssl
from pathlib import Path

from kvtier.access.certificates import Certificates
from kvtier.config.certificate_expiry import certificate_expires_at
from kvtier.config.listen import ListenConfig
from kvtier.config.secret_files import OF_OTHERS, read_file
from kvtier.errors import ConfigError


def load_certificates(listen: ListenConfig) -> Certificates | None:
    """None without TLS. Raises ConfigError for files that cannot be used, or not together."""
    cert, key, client_ca = listen.tls_cert, listen.tls_key, listen.tls_client_ca
    if cert is None or key is None or client_ca is None:
        return None
    chain, secret, client_ca_text = (
        read_file("listen.tls_cert", cert),
        read_file("listen.tls_key", key, forbidden_mode=OF_OTHERS),
        read_file("listen.tls_client_ca", client_ca),
    )
    _check_pair(cert, key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=client_ca_text)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"listen.tls_client_ca: {client_ca} has no certificate in PEM") from error
    expires_at = certificate_expires_at(cert, key)
    return Certificates(chain.encode(), secret.encode(), client_ca_text.encode(), expires_at)


def _check_pair(cert: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"listen.tls_cert, listen.tls_key: {cert} and {key} are no certificate and its key, "
            "in PEM and without a password"
        ) from error


def _no_password() -> str:
    """Instead of a question on the terminal."""
    return ""
