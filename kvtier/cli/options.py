"""Options that several verbs share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from kvtier.sockets import ADMIN_SOCKET, default_address

DEFAULT_ADDRESS: Final = default_address(os.environ, ADMIN_SOCKET)
DEFAULT_TIMEOUT_SECONDS: Final = 5.0
DEFAULT_LONG_TIMEOUT_SECONDS: Final = 300.0
"""Of calls that wait for a device."""
_COMPLETION_SECONDS: Final = 3.0


def namespaces_that_begin_with(context: typer.Context, incomplete: str) -> list[str]:
    """For shells: the names that the agent of this command line knows; none if it does not answer.

    A digest is only there where a name has several layouts.
    """
    from kvtier.cli.connection import admin
    from kvtier.cli.namespaces import label
    from kvtier.cli.remote import reaching
    from kvtier.errors import KvtierError

    try:
        with (
            reaching(context.params) as address,
            admin(address, _COMPLETION_SECONDS) as client,
        ):
            found = client.list_namespaces()
    except KvtierError:
        return []
    plain = [f"{info.spec.tenant}/{info.spec.name}" for info in found]
    names = [
        name if plain.count(name) == 1 else label(info)
        for name, info in zip(plain, found, strict=True)
    ]
    return [name for name in names if name.startswith(incomplete)]


class TierName(StrEnum):
    """Tiers that hold blocks, as options name them."""

    GPU = "gpu"
    HOST = "host"
    DISK = "disk"
    CLUSTER = "cluster"


class LowerTierName(StrEnum):
    """Tiers to which HOST's blocks are written."""

    DISK = "disk"
    CLUSTER = "cluster"


class DeviceTierName(StrEnum):
    """Tiers whose blocks are on a device of their own, and outlive the agent."""

    DISK = "disk"


AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="KVTIER_ADMIN_ADDRESS",
        metavar="TARGET",
        help="The agent's admin socket, as unix:PATH or an absolute path.",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="For each call.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="PATH",
        help="The YAML file; else $KVTIER_CONFIG, else /etc/kvtier/agent.yaml if it exists.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides one key; may be repeated."),
]
NamespaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAMESPACE",
        help="tenant/name, or tenant/name@digest.",
        autocompletion=namespaces_that_begin_with,
    ),
]
NamespaceOption = Annotated[
    str,
    typer.Option(
        "--namespace",
        metavar="NAMESPACE",
        help="Only what belongs to tenant/name[@digest].",
        autocompletion=namespaces_that_begin_with,
    ),
]
LowerTierArgument = Annotated[
    LowerTierName, typer.Argument(metavar="disk|cluster", help="The tier.")
]
DeviceTierArgument = Annotated[DeviceTierName, typer.Argument(metavar="disk", help="The tier.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Count, change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
