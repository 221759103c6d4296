"""The forms of `tiers.cluster.url`; `kvtier.tiers.cluster.url` takes them apart."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, PlainSerializer, Strict

from kvtier.config.redaction import redacted

_WHO: Final = r"([^/?#]*@)?"
_ADDRESS: Final = r"(\[[0-9A-Fa-f:.%]+\]|[^][:/\s@,?#]+)(:[1-9]\d{0,4})?"
_DB: Final = r"(\?db=\d{1,5})?"
_FORMS: Final = (
    r"embedded",
    rf"rediss?://{_WHO}{_ADDRESS}/?{_DB}",
    rf"unix://{_WHO}/[^/?#][^?#]*{_DB}",
    rf"rediss?\+sentinel://{_WHO}{_ADDRESS}(,{_ADDRESS})*/[^/?#]+{_DB}",
    rf"rediss?\+cluster://{_WHO}{_ADDRESS}(,{_ADDRESS})*/?",
)
_URL: Final = re.compile("|".join(_FORMS))


def check_url(url: str) -> str:
    """Raises ValueError, which does not repeat the URL: there may be a password in it."""
    if not (url.isascii() and url.isprintable() and _URL.fullmatch(url)):
        raise ValueError(
            "write redis://HOST:PORT[?db=N], rediss://HOST:PORT, unix:///PATH, "
            "redis+sentinel://HOST:PORT,HOST:PORT/MASTER, redis+cluster://HOST:PORT,HOST:PORT or "
            "embedded; USER:PASSWORD@ may stand before the first host, with %XX for / ? # and what "
            "is not ASCII"
        )
    return url


def has_tls(url: str) -> bool:
    """Whether the servers are spoken to over TLS."""
    return url.startswith("rediss")


def has_password(url: str) -> bool:
    """Whether it names one."""
    who, _, _ = re.split("[/?#]", url.partition("://")[2])[0].rpartition("@")
    return bool(who.partition(":")[2])


ClusterUrl = Annotated[
    str,
    Strict(),
    AfterValidator(check_url),
    PlainSerializer(redacted, return_type=str, when_used="json"),
]
