"""Settings that an engine hands on to its connector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, TypeVar


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


T = TypeVar("T", bound=_Dataclass)


def engine_settings(settings: type[T], given: Mapping[str, Any], section: str) -> T:
    """A dataclass of plain fields with defaults, from what stands in `section` of the engine's own
    configuration. Raises ValueError for a setting that does not exist or has another type."""
    known = {each.name: type(each.default) for each in fields(settings)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"{section}.{name} is not a setting of kvtier; there are {', '.join(known)}"
            )
        wanted = known[name]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not wanted:
            raise ValueError(f"{section}.{name} is {value!r}; it must be a {wanted.__name__}")
        values[name] = value
    return settings(**values)
