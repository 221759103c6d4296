"""How verbs reach an agent: `--address`, `--token-file`, `--tls-...` and `--context` for all."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kvtier.cli.contexts import Context, load_context
from kvtier.cli.options import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from kvtier.client.endpoint import Endpoint

#: Of the command that runs: where its agent is.
_CHOSEN: Final[ContextVar[Context]] = ContextVar("chosen")

_ADDRESS_HELP: Final = (
    "The agent's admin socket, as unix:PATH or an absolute path, or HOST:PORT. "
    "[env var: KVTIER_ADMIN_ADDRESS]"
)
_OPTIONS: Final[dict[str, Any]] = {
    "address": Annotated[
        str | None, typer.Option("--address", metavar="TARGET", help=_ADDRESS_HELP)
    ],
    "context": Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="NAME",
            envvar="KVTIER_CONTEXT",
            help="Address and credentials by a name of ~/.config/kvtier/contexts.yaml; then the "
            "variables of the options below do not count.",
        ),
    ],
    "token_file": Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A bearer token, over TCP. [env var: KVTIER_TOKEN_FILE]"),
    ],
    "tls_ca": Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The agent's CA, over TCP. [env var: KVTIER_TLS_CA]"),
    ],
    "tls_cert": Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A certificate to show. [env var: KVTIER_TLS_CERT]"),
    ],
    "tls_key": Annotated[
        str | None, typer.Option(metavar="FILE", help="Its key. [env var: KVTIER_TLS_KEY]")
    ],
    "insecure": Annotated[
        bool, typer.Option("--insecure", help="Over TCP without TLS. [env var: KVTIER_INSECURE=1]")
    ],
}


def add_options(verbs: typer.Typer) -> None:
    """Gives them to every verb, also of groups, that has an `address`."""
    for command in verbs.registered_commands:
        callback = command.callback
        if callback is not None and "address" in inspect.signature(callback).parameters:
            command.callback = _reaching(callback)
    for group in verbs.registered_groups:
        if group.typer_instance is not None:
            add_options(group.typer_instance)


def _reaching(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb with more options: it hears the address, and `endpoint` the rest."""

    @functools.wraps(verb)
    def wrapper(**given: Any) -> Any:
        said = {option: given.pop(option) for option in _OPTIONS if option in given}
        with reaching(said) as address:
            return verb(**given, address=address)

    signature = inspect.signature(verb, eval_str=True)
    parameters = [each for each in signature.parameters.values() if each.name != "address"]
    for name, annotation in _OPTIONS.items():
        default = False if name == "insecure" else None
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**verb.__annotations__, **_OPTIONS}
    return wrapper


@contextmanager
def reaching(options: Mapping[str, Any]) -> Iterator[str]:
    """The address that these options of a command line, with what stands behind them, name; within
    it `endpoint` knows the rest."""
    said = {name: options[name] for name in _OPTIONS if options.get(name)}
    chosen = _choose(said, said.pop("context", None))
    token = _CHOSEN.set(chosen)
    try:
        yield chosen.address
    finally:
        _CHOSEN.reset(token)


def _choose(said: dict[str, Any], name: str | None) -> Context:
    """Options win; then the context that is named, and without one the environment."""
    from kvtier.client.endpoint import is_insecure

    if name:
        kept = load_context(name, os.environ)
    else:
        kept = Context(
            os.environ.get("KVTIER_ADMIN_ADDRESS") or DEFAULT_ADDRESS,
            os.environ.get("KVTIER_TOKEN_FILE", ""),
            os.environ.get("KVTIER_TLS_CA", ""),
            os.environ.get("KVTIER_TLS_CERT", ""),
            os.environ.get("KVTIER_TLS_KEY", ""),
            is_insecure(os.environ),
        )
    return replace(kept, **said)


def endpoint(address: str) -> Endpoint:
    """Of the TCP address of the command that runs. Raises ConfigError or InvalidRequestError."""
    # Before gRPC is imported, or it writes about each failed handshake itself.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kvtier.client.endpoint import Endpoint, read_token, tls_from

    chosen = _CHOSEN.get(Context())
    files = {
        "--tls-ca (KVTIER_TLS_CA)": chosen.tls_ca,
        "--tls-cert (KVTIER_TLS_CERT)": chosen.tls_cert,
        "--tls-key (KVTIER_TLS_KEY)": chosen.tls_key,
    }
    tls = tls_from(files, is_insecure=chosen.insecure)
    token = read_token(Path(chosen.token_file)) if chosen.token_file else ""
    return Endpoint(address, token, tls)
