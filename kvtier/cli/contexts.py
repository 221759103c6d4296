"""Named contexts: where an agent is, and what it is shown, in a file of the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from kvtier.errors import ConfigError

_FORM: Final = "write NAME: {address: HOST:PORT, token_file: FILE, tls_ca: FILE, ...}"


@dataclass(frozen=True)
class Context:
    """What the options of the same names say; what is empty is not said."""

    address: str = ""
    token_file: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    insecure: bool = False


def contexts_file(environ: Mapping[str, str]) -> Path:
    """`KVTIER_CONTEXTS`, else kvtier/contexts.yaml where the user's configuration is."""
    if named := environ.get("KVTIER_CONTEXTS"):
        return Path(named)
    home = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "kvtier" / "contexts.yaml"


def load_context(name: str, environ: Mapping[str, str]) -> Context:
    """One of the file's. Files that it names are beside it, unless their paths say else.

    Raises ConfigError, which names the file and the key.
    """
    path = contexts_file(environ)
    contexts = _read(path)
    if name not in contexts:
        known = ", ".join(sorted(map(str, contexts))) or "none"
        raise ConfigError(f"{path}: no context {name!r}; there are: {known}")
    values = contexts[name]
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: {name} is no mapping; {_FORM}")
    allowed = {field.name: type(field.default) for field in fields(Context)}
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"{path}: unknown key {name}.{key}; allowed are {', '.join(allowed)}")
        if type(value) is not allowed[key]:
            what = "true or false" if allowed[key] is bool else "text"
            raise ConfigError(f"{path}: {name}.{key} must be {what}")
    if not values.get("address"):
        raise ConfigError(f"{path}: {name}.address is missing; {_FORM}")
    return Context(**{key: _beside(path, key, value) for key, value in values.items()})


def _beside(path: Path, key: str, value: Any) -> Any:
    """A file's path, from the directory of the contexts on; other values as they are."""
    if key in ("address", "insecure"):
        return value
    return os.path.join(path.parent, os.path.expanduser(value))


def _read(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; {_FORM}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML") from error
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: it is no mapping; {_FORM}")
    return loaded
