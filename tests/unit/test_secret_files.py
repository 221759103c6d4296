"""Behaviour of `kvtier.config.secret_files`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvtier.config import ClusterConfig, load_password, load_sealing_keys
from kvtier.errors import ConfigError
from kvtier.tiers.cluster.sealing import Sealer

FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))
LINE = f"1 {FIRST.hex()}"
OTHER = f"4294967295 {SECOND.hex().upper()}"


def keys_in(path: Path, text: str | bytes, mode: int = 0o600) -> ClusterConfig:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return ClusterConfig(keys_file=path)


def refusal(cluster: ClusterConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_sealing_keys(cluster)
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, OSError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "keys", "current"),
    [
        (LINE, {1: FIRST}, 1),
        (f"{LINE} current\n", {1: FIRST}, 1),
        (
            f"# ours\r\n\r\n  {LINE}\r\n{OTHER}\t current\r\n",
            {1: FIRST, 2**32 - 1: SECOND},
            2**32 - 1,
        ),
    ],
)
def test_keys_are_read_as_a_sealer_takes_them(
    tmp_path: Path, text: str, keys: dict[int, bytes], current: int
) -> None:
    found = load_sealing_keys(keys_in(tmp_path / "keys", text, 0o400))
    assert found == (keys, current)
    Sealer(*found)


def test_without_a_file_there_are_no_keys() -> None:
    assert load_sealing_keys(ClusterConfig()) == ({}, None)
    Sealer({}, None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "there is no key in it"),
        ("# nothing\n", "there is no key in it"),
        (f"{LINE}\n{OTHER}", "0 keys are marked as current; mark one"),
        (f"{LINE} current\n{OTHER} current", "2 keys are marked as current; mark one"),
        (f"{LINE}\n\n{LINE} current", ", line 3: key 1 is there twice"),
        (f"0 {FIRST.hex()}", ", line 1: a line is a key id from 1 on, 64 hexadecimal digits"),
        (f"4294967296 {FIRST.hex()}", ", line 1: a line is"),
        (LINE[:-1], ", line 1: a line is"),
        (LINE + "0", ", line 1: a line is"),
        (f"{LINE} now", ", line 1: a line is"),
        (FIRST.hex(), ", line 1: a line is"),
        (LINE.encode() + b"\xff", "is not text in UTF-8"),
        ("#" * 65537, "is larger than 65536 bytes"),
    ],
)
def test_other_text_is_refused_and_not_repeated(
    tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    path = tmp_path / "keys"
    message = refusal(keys_in(path, text))
    assert message.startswith(f"tiers.cluster.keys_file: {path}")
    assert complaint in message
    assert FIRST.hex()[:16] not in message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_keys_that_others_may_read_or_write_are_refused(tmp_path: Path, mode: int) -> None:
    message = refusal(keys_in(tmp_path / "keys", LINE, mode))
    assert message.endswith(f"keys is open to others (mode {mode:04o}): chmod 600")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    assert "is not a file" in refusal(ClusterConfig(keys_file=pipe))
    assert "Is a directory" in refusal(ClusterConfig(keys_file=tmp_path))
    assert "No such file" in refusal(ClusterConfig(keys_file=tmp_path / "none"))


def test_a_password_is_in_a_file_or_in_a_variable(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(" p w\u00e4rd \n")
    assert load_password(ClusterConfig(password_file=path), {}) == " p w\u00e4rd "
    assert load_password(ClusterConfig(password_env="P"), {"P": "s3cret"}) == "s3cret"
    assert load_password(ClusterConfig(), {"P": "s3cret"}) == ""


def test_a_password_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("\n")
    with pytest.raises(ConfigError, match=rf"^tiers\.cluster\.password_file: {path} is empty"):
        load_password(ClusterConfig(password_file=path), {})
    with pytest.raises(ConfigError, match=r"^tiers\.cluster\.password_file: cannot read .*No such"):
        load_password(ClusterConfig(password_file=tmp_path / "none"), {})
    with pytest.raises(ConfigError, match=r"^tiers\.cluster\.password_env: the variable P is not"):
        load_password(ClusterConfig(password_env="P"), {"P": ""})
