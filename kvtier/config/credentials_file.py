"""The file that says who may call over TCP, and what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kvtier.access.credential import Credential
from kvtier.access.proof import Proof
from kvtier.access.role import Role
from kvtier.access.scope import Scope
from kvtier.config.secret_files import OF_OTHERS, read_file
from kvtier.errors import ConfigError, InvalidRequestError

_FORM: Final = "a line is NAME ROLE NAMESPACES PROOF [until=TIME], as `kvtier token` prints it"
_MOST_NAME_BYTES: Final = 64


def load_credentials(path: Path) -> dict[Proof, Credential]:
    """Credentials by what proves them.

    The file belongs to nobody but its owner (mode 0600 or 0400) and has a line for each; empty
    lines and those that begin with # are skipped. A name may have several lines: for the time in
    which a token is replaced, say.

        # name     role      namespaces      proof                       until, if it ends
        dashboard  reader    *               sha256:9f86d0818...0f00a08  until=2027-01-01T00:00:00Z
        node-7     worker    acme/*,beta/m   dns:node-7.example
        on-call    operator  *               uri:spiffe://example/on-call

    Raises ConfigErrors that repeat nothing of the file.
    """
    field = "listen.credentials_file"
    text = read_file(field, path, forbidden_mode=OF_OTHERS)
    found: dict[Proof, Credential] = {}
    for number, words in _lines(text):
        try:
            proof, credential = _parse(words)
        except (ValueError, InvalidRequestError) as error:
            raise ConfigError(f"{field}: {path}, line {number}: {error}") from None
        if proof in found:
            raise ConfigError(f"{field}: {path}, line {number}: its proof is there twice")
        found[proof] = credential
    return found


def format_line(proof: Proof, credential: Credential) -> str:
    """As `load_credentials` reads it."""
    words = [credential.name, str(credential.role), ",".join(sorted(credential.scope.patterns))]
    words.append(str(proof))
    if credential.expires_at is not None:
        until = datetime.fromtimestamp(credential.expires_at, UTC)
        words.append(f"until={until:%Y-%m-%dT%H:%M:%SZ}")
    return " ".join(words)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.split()


def _parse(words: list[str]) -> tuple[Proof, Credential]:
    """Raises ValueError or InvalidRequestError for what is wrong with a line."""
    if len(words) not in (4, 5):
        raise ValueError(f"it has {len(words)} words; {_FORM}")
    name, role, patterns, proof = words[:4]
    check_name(name)
    if role not in list(Role):
        raise ValueError(f"the role must be one of {', '.join(Role)}; {_FORM}")
    try:
        scope = Scope(frozenset(patterns.split(",")))
    except InvalidRequestError:
        raise ValueError(
            f"the namespaces must be tenant/name, tenant/* or *, separated by commas; {_FORM}"
        ) from None
    until = _until(words[4]) if len(words) == 5 else None
    return Proof.parse(proof), Credential(name, Role(role), scope, until)


def check_name(name: str) -> None:
    """Raises ValueError for what cannot be the name of a credential."""
    if not name.isascii() or not name.isprintable() or len(name) > _MOST_NAME_BYTES or not name:
        raise ValueError(f"a name has 1 to {_MOST_NAME_BYTES} printable characters of ASCII")
    if name.startswith("#") or any(each.isspace() for each in name):
        raise ValueError("a name has no spaces, and no # at its beginning")


def _until(word: str) -> float:
    key, _, text = word.partition("=")
    try:
        moment = datetime.fromisoformat(text) if key == "until" else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("the last word must be until=TIME, as until=2027-01-01T00:00:00Z")
    return moment.timestamp()
