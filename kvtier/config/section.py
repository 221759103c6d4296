"""What sections of the configuration are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from kvtier.config.directories import parse_directory

Count = Annotated[int, Strict(), Field(ge=1)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Seconds = Positive
SecondsOrNone = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Positive, Field(le=1)]
Text = Annotated[str, Strict()]
File = Annotated[Path, BeforeValidator(parse_directory)]

#: A tenant's or a namespace's.
NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
_TENANT: Final = re.compile(rf"\*|{NAME}")


def check_tenants(tenants: tuple[str, ...]) -> None:
    """Raises ValueError for what is neither `*` nor a name."""
    if not all(map(_TENANT.fullmatch, tenants)):
        raise ValueError(
            'write a list of "*" or names: lower-case letters, digits, . _ -, at most 63, '
            "a letter or a digit first"
        )


class Section(BaseModel):
    """Immutable, and strict about what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
