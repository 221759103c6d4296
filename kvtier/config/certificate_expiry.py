"""When a certificate expires."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final

#: `X509_V_FLAG_NO_CHECK_TIME` of OpenSSL, which Python has no name for.
_NO_CHECK_TIME: Final = 0x200000
#: TLS 1.3 takes two; one more for what is unforeseen.
_MOST_TURNS: Final = 3


def certificate_expires_at(cert: Path, key: Path) -> float | None:
    """Unix seconds; None where TLS does not get as far as to show it.

    The files are a certificate and its key, without a password. Python's `ssl` tells the dates of a
    peer's certificate, and of no file: here it is shown to itself, in memory.
    """
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        server.load_cert_chain(cert, key)
        client.check_hostname = False
        client.load_verify_locations(cert)
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        ours = server.wrap_bio(to_server, to_client, server_side=True)
        theirs = client.wrap_bio(to_client, to_server)
        for _ in range(_MOST_TURNS):
            for each in (theirs, ours):
                with suppress(ssl.SSLWantReadError):
                    each.do_handshake()
        shown = theirs.getpeercert()
        return ssl.cert_time_to_seconds(str(shown["notAfter"])) if shown else None
    except (ssl.SSLError, OSError, ValueError):
        return None
