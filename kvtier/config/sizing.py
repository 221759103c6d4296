"""A HOST tier that chooses its capacity."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from kvtier.config.section import Seconds, Section, Share
from kvtier.config.size import Size, at_least, format_size, parse_size
from kvtier.core.capacity import LEAST_HOST_BYTES, MOST_HOST_BYTES

AUTO: Final = "auto"


def parse_capacity(value: object) -> int | str:
    """`auto`, or a size of HOST; anything else is a ValueError."""
    if isinstance(value, str) and value.strip() == AUTO:
        return AUTO
    try:
        size_bytes = parse_size(value)
    except ValueError as error:
        raise ValueError(f"{error}, or {AUTO}") from error
    if size_bytes < LEAST_HOST_BYTES:
        raise ValueError(f"must be at least {format_size(LEAST_HOST_BYTES)}")
    if size_bytes > MOST_HOST_BYTES:
        raise ValueError(f"must be at most {format_size(MOST_HOST_BYTES)}")
    return size_bytes


HostCapacity = Annotated[
    int | Literal["auto"],
    BeforeValidator(parse_capacity),
    PlainSerializer(
        lambda value: value if value == AUTO else format_size(value),
        return_type=str,
        when_used="json",
    ),
]


class AutoSizingConfig(Section):
    """Of `capacity: auto`."""

    share: Share = 0.5
    """Of the memory of the node, or of the cgroup's limit if that is less; and what
    `memory_reserve` leaves of it at most."""
    least: Annotated[Size, at_least(LEAST_HOST_BYTES)] = 64 * 2**20
    """It shrinks no further."""
    most: Annotated[Size, at_least(LEAST_HOST_BYTES)] | None = None
    """It grows no further; None: as far as `share` says."""
    pressure: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1
    """It shrinks when tasks have waited for memory for this share of the time."""
    calm: Seconds = 60.0
    """It grows when there was no pressure for so long."""

    @model_validator(mode="after")
    def _has_room(self) -> AutoSizingConfig:
        if self.most is not None and self.most < self.least:
            raise ValueError(
                f"most ({format_size(self.most)}) may not be less than "
                f"least ({format_size(self.least)})"
            )
        return self
