"""What the configuration only points at: the cluster's password and its sealing keys.

Nothing here is kept in AgentConfig, so that nothing that shows a configuration shows it. Errors are
ConfigErrors that name the field and the file, and repeat nothing of what is in it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from kvtier.config.tiers import ClusterConfig
from kvtier.errors import ConfigError

SealingKeys = tuple[dict[int, bytes], int | None]

_MOST_BYTES: Final = 64 << 10
OF_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_KEY_ID: Final = 2**32 - 1
_KEY: Final = re.compile(r"([0-9]{1,10})\s+([0-9A-Fa-f]{64})(\s+current)?")
_KEY_FORM: Final = (
    "a line is a key id from 1 on, 64 hexadecimal digits and, for one of them, current"
)


def load_password(cluster: ClusterConfig, environ: Mapping[str, str]) -> str:
    """Of `password_file`, without the end of its line, or of the variable; else empty."""
    if cluster.password_env is not None:
        field = "tiers.cluster.password_env"
        if not (password := environ.get(cluster.password_env)):
            raise ConfigError(f"{field}: the variable {cluster.password_env} is not set, or empty")
        return password
    if cluster.password_file is None:
        return ""
    field = "tiers.cluster.password_file"
    if not (password := read_file(field, cluster.password_file).rstrip("\r\n")):
        raise ConfigError(f"{field}: {cluster.password_file} is empty")
    return password


def load_sealing_keys(cluster: ClusterConfig) -> SealingKeys:
    """Keys of 32 bytes by their ids, and the current id; as `tiers.cluster.sealing.Sealer` wants.

    Without `keys_file` there are none. The file belongs to nobody but its owner (mode 0600 or
    0400) and has a line for each key; empty lines and those that begin with # are skipped:

        1 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
        2 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f current
    """
    if cluster.keys_file is None:
        return {}, None
    where = f"tiers.cluster.keys_file: {cluster.keys_file}"
    text = read_file("tiers.cluster.keys_file", cluster.keys_file, forbidden_mode=OF_OTHERS)
    keys: dict[int, bytes] = {}
    marked: list[int] = []
    for number, key_id, secret, is_current in _key_lines(text, where):
        if key_id in keys:
            raise ConfigError(f"{where}, line {number}: key {key_id} is there twice")
        keys[key_id] = secret
        marked += [key_id] if is_current else []
    if not keys:
        raise ConfigError(f"{where}: there is no key in it; {_KEY_FORM}")
    if len(keys) == 1:
        marked = list(keys)
    if len(marked) != 1:
        raise ConfigError(f"{where}: {len(marked)} keys are marked as current; mark one")
    return keys, marked[0]


def _key_lines(text: str, where: str) -> Iterator[tuple[int, int, bytes, bool]]:
    """Number of the line, key id, key, whether it is the current one."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _KEY.fullmatch(line.strip())
        if found is None or not 1 <= int(found[1]) <= _MAX_KEY_ID:
            raise ConfigError(f"{where}, line {number}: {_KEY_FORM}")
        yield number, int(found[1]), bytes.fromhex(found[2]), found[3] is not None


def read_file(field: str, path: Path, forbidden_mode: int = 0) -> str:
    """All of a small file, whose mode is judged when it is open already."""
    try:
        with open(path, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{field}: {path} is not a file")
            if stat.S_IMODE(status.st_mode) & forbidden_mode:
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigError(f"{field}: {path} is open to others (mode {mode:04o}): chmod 600")
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {path}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{field}: {path} is larger than {_MOST_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Without its cause, which holds what was read.
        raise ConfigError(f"{field}: {path} is not text in UTF-8") from None


def _open(path: str, flags: int) -> int:
    """Does not wait for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
