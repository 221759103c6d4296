"""`kvtier token`: a bearer token, and the line with which an agent knows it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from kvtier.access.role import Role
from kvtier.cli.document import print_json
from kvtier.cli.duration import seconds_of
from kvtier.cli.options import JsonOption
from kvtier.errors import InvalidRequestError, KvtierError


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of whoever will have it, for logs.")],
    role: Annotated[Role, typer.Option(help="What it is for.")],
    namespaces: Annotated[
        str,
        typer.Option(metavar="PATTERNS", help="tenant/name, tenant/* or *, separated by commas."),
    ],
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="From now on: 12h, 90d. Without: never.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the token there (mode 0600), and print the line only."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token for calls over TCP, and the agent's line for it.

    The line goes into the agent's listen.credentials_file.

    The agent keeps the token's SHA-256 only: nobody can tell it again. An agent that runs sees the
    new line by itself.

    Example: kvtier token ci --role worker --namespaces "ci/*" --out ci.token >> credentials
    """
    from kvtier.access.credential import Credential
    from kvtier.access.proof import Proof, ProofKind
    from kvtier.access.scope import Scope
    from kvtier.access.tokens import make_token, token_digest
    from kvtier.config.credentials_file import check_name, format_line

    try:
        check_name(name)
    except ValueError as error:
        raise InvalidRequestError(f"NAME: {error}") from error
    until = None if expires is None else time.time() + seconds_of(expires, "--expires")
    credential = Credential(name, role, Scope(frozenset(namespaces.split(","))), until)
    made = make_token()
    line = format_line(Proof(ProofKind.TOKEN, token_digest(made).hex()), credential)
    if out is not None:
        _write(out, made)
    if as_json:
        print_json({"line": line} if out is not None else {"token": made, "line": line})
        return
    if out is None:
        typer.echo(f"# The token, for whoever calls: {made}\n# The line, for the agent:")
    typer.echo(line)


def _write(path: Path, made: str) -> None:
    """Never over a file that is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise KvtierError(f"cannot make {path}: {error.strerror}") from error
    with open(descriptor, "w") as file:
        file.write(made + "\n")
