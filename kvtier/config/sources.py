"""Settings as each source gives them, before anyone judges their values."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from kvtier.config.redaction import redacted
from kvtier.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "KVTIER_"

RESERVED_VARIABLES: Final = frozenset(
    {
        "KVTIER_ADDRESS",
        "KVTIER_ADMIN_ADDRESS",
        "KVTIER_CONFIG",
        "KVTIER_CONTEXT",
        "KVTIER_CONTEXTS",
        "KVTIER_INSECURE",
        "KVTIER_TLS_CA",
        "KVTIER_TLS_CERT",
        "KVTIER_TLS_KEY",
        "KVTIER_TOKEN_FILE",
        "KVTIER_TRACES",
    }
)

# Kubernetes sets these in every pod beside a Service called kvtier or kvtier-something.
_SERVICE_LINK: Final = re.compile(
    r"KVTIER_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)"
)


class Setting(NamedTuple):
    """One key with its value: `origin` names the source, `where` also the place in it.

    `items` are the places of a list's items, if they have places of their own.
    """

    key: str
    value: object
    origin: str
    where: str
    items: tuple[str, ...] = ()


def file_settings(path: Path, sections: Collection[str]) -> Iterator[Setting]:
    """The leaves of a YAML mapping; `sections` are the keys that hold other keys."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = redacted(" ".join(str(error).split()))
        raise ConfigError(f"{path} is not YAML: {told}") from error
    if root is None or loaded is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: the file must be a mapping of keys to values")
    yield from _leaves(root, loaded, "", path, sections)


def _leaves(
    node: yaml.MappingNode,
    loaded: Mapping[object, object],
    prefix: str,
    path: Path,
    sections: Collection[str],
) -> Iterator[Setting]:
    seen: set[str] = set()
    for (key_node, value_node), name in zip(node.value, _names(node), strict=True):
        key = f"{prefix}{name}"
        where = _where(key_node, path)
        if name in seen:
            raise ConfigError(f"{where}: {key} is given twice")
        seen.add(name)
        value = loaded.get(name)
        if key in sections and isinstance(value_node, yaml.MappingNode):
            assert isinstance(value, Mapping)
            yield from _leaves(value_node, value, f"{key}.", path, sections)
        elif key not in sections or value is not None:
            yield Setting(key, value, f"file {path}", where, _items(value_node, path))


def _items(node: yaml.Node, path: Path) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        return ()
    return tuple(_where(each, path) for each in node.value)


def _where(node: yaml.Node, path: Path) -> str:
    return f"{path}, line {node.start_mark.line + 1}"


def _names(node: yaml.MappingNode) -> list[str]:
    return [str(key_node.value) for key_node, _ in node.value]


def environment_settings(environ: Mapping[str, str], keys: Collection[str]) -> Iterator[Setting]:
    """`KVTIER_TIERS__HOST__CAPACITY` is `tiers.host.capacity`; others' variables are skipped."""
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if key in keys or not _is_foreign(variable):
            yield Setting(key, _parse(text, variable), variable, variable)


def _is_foreign(variable: str) -> bool:
    return variable in RESERVED_VARIABLES or _SERVICE_LINK.fullmatch(variable) is not None


def override_settings(overrides: Sequence[str]) -> Iterator[Setting]:
    """Each of `a.b=c`, with the value written as in YAML."""
    for override in overrides:
        key, equals, text = override.partition("=")
        where = f"--set {redacted(override)}"
        if not equals or not key.strip():
            raise ConfigError(f"{where}: write --set KEY=VALUE, as in --set log.level=debug")
        yield Setting(key.strip(), _parse(text, where), "--set", where)


def _parse(text: str, where: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {redacted(text)!r} is not a YAML value") from error
