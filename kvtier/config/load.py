"""Merging the sources: defaults, then the file, the environment, and `--set`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from kvtier.config.redaction import redacted
from kvtier.config.schema import AgentConfig
from kvtier.config.sources import (
    Setting,
    environment_settings,
    file_settings,
    override_settings,
)
from kvtier.errors import ConfigError
from kvtier.sockets import default_socket_dir

SYSTEM_FILE: Final = Path("/etc/kvtier/agent.yaml")

DEFAULT_ORIGIN: Final = "default"

_RUNTIME_DIR: Final = "XDG_RUNTIME_DIR"

_WORDS: Final = {
    "Extra inputs are not permitted": "unknown key",
    "Input should be": "must be",
    "a valid tuple": "a list",
    "a valid integer": "an integer",
    "a valid number": "a number",
}


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid configuration; `origin` says for each dotted key which source won.

    `file` is the one that was read, if any.
    """

    config: AgentConfig
    origin: dict[str, str]
    file: Path | None


def load_config(
    path: Path | None, environ: Mapping[str, str], overrides: Sequence[str]
) -> LoadedConfig:
    """Without a path: the file that `KVTIER_CONFIG` names, else `SYSTEM_FILE` if it exists.

    Raises ConfigError, which names every wrong setting with its source.
    """
    keys = config_keys()
    sections = section_keys()
    file = path or _found_file(environ)
    settings = chain(
        file_settings(file, sections) if file else (),
        environment_settings(environ, keys),
        override_settings(overrides),
    )
    winners: dict[str, Setting] = {}  # the strongest source last
    for setting in settings:
        _check_key(setting, keys, sections)
        winners.pop(setting.key, None)
        winners[setting.key] = setting
    values = _nested(winners)
    values.setdefault("socket_dir", default_socket_dir(environ))
    try:
        config = AgentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, winners, environ)) from error
    origin = {key: winners[key].origin if key in winners else DEFAULT_ORIGIN for key in keys}
    return LoadedConfig(config, origin, file)


def config_keys() -> tuple[str, ...]:
    """Every dotted key that has a value, in the schema's order."""
    return tuple(key for key, section in _walk(AgentConfig, "") if section is None)


def section_keys() -> tuple[str, ...]:
    """Every dotted key that holds other keys."""
    return tuple(key for key, section in _walk(AgentConfig, "") if section is not None)


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel] | None]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{prefix}{name}", kind
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", None


def _found_file(environ: Mapping[str, str]) -> Path | None:
    if named := environ.get("KVTIER_CONFIG"):
        return Path(named)
    return SYSTEM_FILE if SYSTEM_FILE.exists() else None


def _check_key(setting: Setting, keys: Sequence[str], sections: Sequence[str]) -> None:
    if setting.key in keys:
        return
    if setting.key in sections:
        inside = _names_in(f"{setting.key}.", keys, sections)
        raise ConfigError(
            f"{setting.where}: {setting.key} = {_as_yaml(setting.value)} is not allowed: "
            f"it is a section with the keys {inside}"
        )
    if close := get_close_matches(setting.key, keys, n=1, cutoff=0.8):
        allowed = f"did you mean {close[0]}?"
    else:
        parent = setting.key.rpartition(".")[0]
        prefix = f"{parent}." if parent in sections else ""
        allowed = f"allowed {f'in {parent} ' if prefix else ''}are " + _names_in(
            prefix, keys, sections
        )
    raise ConfigError(f"{setting.where}: unknown key {setting.key}; {allowed}")


def _names_in(prefix: str, keys: Sequence[str], sections: Sequence[str]) -> str:
    tails = (key.removeprefix(prefix) for key in (*keys, *sections) if key.startswith(prefix))
    return ", ".join(sorted(tail for tail in tails if "." not in tail))


def _nested(winners: Mapping[str, Setting]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, setting in winners.items():
        *parents, name = key.split(".")
        section = root
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = setting.value
    return root


def _explain(
    error: ValidationError, winners: Mapping[str, Setting], environ: Mapping[str, str]
) -> str:
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        where = _where(detail["loc"], winners, environ)
        value = "" if isinstance(detail["input"], dict) else f" = {_as_yaml(detail['input'])}"
        allowed = detail["msg"].removeprefix("Value error, ")
        for theirs, ours in _WORDS.items():
            allowed = allowed.replace(theirs, ours)
        lines.append(f"{where}: {_dotted(detail['loc'])}{value} is not allowed: {allowed}")
    return "\n".join(lines)


def _dotted(path: Sequence[str | int]) -> str:
    """`workers[0].uid`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _as_yaml(value: object) -> str:
    """A value as it is written in a file; text in quotes, passwords in stars."""
    if isinstance(value, str | Path):
        return repr(redacted(str(value)))
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return redacted(text.removesuffix("\n").removesuffix("\n..."))


def _where(
    path: Sequence[str | int], winners: Mapping[str, Setting], environ: Mapping[str, str]
) -> str:
    """The place in a source where a value was given."""
    setting = _setting_at([str(part) for part in path], winners)
    if setting is not None:
        number = next((part for part in path if isinstance(part, int)), None)
        return setting.where if number is None or not setting.items else setting.items[number]
    is_from_runtime_dir = path == ("socket_dir",) and environ.get(_RUNTIME_DIR)
    return _RUNTIME_DIR if is_from_runtime_dir else DEFAULT_ORIGIN


def _setting_at(path: Sequence[str], winners: Mapping[str, Setting]) -> Setting | None:
    """The setting that gave the value at this place, or the strongest one inside it."""
    for end in range(len(path), 0, -1):
        if setting := winners.get(".".join(path[:end])):
            return setting
    inside = [winners[key] for key in winners if key.startswith(".".join(path) + ".")]
    return inside[-1] if inside else None
