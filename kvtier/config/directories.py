"""Lists of directories as people write them: `[/mnt/a, /mnt/b]`, `/mnt/a,/mnt/b` or `/mnt/a`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator


def parse_directories(value: object) -> object:
    """Text is split at its commas; lists stay as they are."""
    if isinstance(value, str):
        return [each.strip() for each in value.split(",")]
    if isinstance(value, list | tuple):
        return value
    raise ValueError("write a list of absolute paths, [] for none")


def parse_directory(value: object) -> Path:
    """An absolute path; not resolved, because the machine that judges it may be another one."""
    path = Path(value) if isinstance(value, str | Path) else Path()
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise ValueError("write an absolute path, without ..")
    return Path("/", *path.parts[1:])  # POSIX lets // begin another name of the root


def _are_apart(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    for place, path in enumerate(paths):
        for other in paths[:place]:
            if path == other:
                raise ValueError(f"{path} is named twice")
            if path in other.parents or other in path.parents:
                inner, outer = sorted((path, other), reverse=True)
                raise ValueError(f"{inner} is inside {outer}; name directories that are apart")
    return paths


Directories = Annotated[
    tuple[Annotated[Path, BeforeValidator(parse_directory)], ...],
    BeforeValidator(parse_directories),
    AfterValidator(_are_apart),
]
