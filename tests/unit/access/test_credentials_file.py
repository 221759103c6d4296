"""Behaviour of `kvtier.config.credentials_file`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.access.credential import Credential
from kvtier.access.proof import Proof, ProofKind
from kvtier.access.role import Role
from kvtier.access.scope import Scope
from kvtier.config.credentials_file import format_line, load_credentials
from kvtier.errors import ConfigError

HASH = "ab" * 32
LINE = f"ci worker ci/*,a/m sha256:{HASH}"


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    file = path / "credentials"
    file.write_text(text)
    file.chmod(mode)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_credentials(file)
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, OSError)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_lines_are_read_as_they_are_written(tmp_path: Path) -> None:
    credentials = {
        Proof(ProofKind.TOKEN, HASH): Credential(
            "ci", Role.WORKER, Scope(frozenset({"ci/*", "a/m"})), 1893456000.0
        ),
        Proof(ProofKind.DNS, "node-7.example"): Credential(
            "node", Role.READER, Scope(frozenset({"*"}))
        ),
        Proof(ProofKind.URI, "spiffe://example/On-Call"): Credential(
            "on-call", Role.OPERATOR, Scope(frozenset({"*"}))
        ),
    }
    lines = [format_line(proof, credential) for proof, credential in credentials.items()]
    file = written(tmp_path, "# comment\n\n" + "\r\n".join(lines), 0o400)
    assert load_credentials(file) == credentials


def test_names_of_hosts_have_no_case_and_a_name_may_have_several_lines(tmp_path: Path) -> None:
    file = written(tmp_path, f"{LINE}\nci worker ci/* dns:Node.Example\n")
    assert {str(proof) for proof in load_credentials(file)} == {
        f"sha256:{HASH}",
        "dns:node.example",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ci worker ci/*", "it has 3 words"),
        (f"{LINE} until=2030-01-01T00:00:00Z more", "it has 6 words"),
        (f"{LINE} until=2030-01-01", "the last word must be until=TIME"),
        (f"{LINE} until=2030-01-01T00:00:00", "the last word must be until=TIME"),
        (f"{LINE} 2030-01-01T00:00:00Z", "the last word must be until=TIME"),
        (f"ci admin * sha256:{HASH}", "the role must be one of worker, operator, reader"),
        (f"ci worker ci sha256:{HASH}", "the namespaces must be tenant/name, tenant/* or *"),
        (f"ci worker */m sha256:{HASH}", "the namespaces must be"),
        (f"ci worker ci/*, sha256:{HASH}", "the namespaces must be"),
        (f"ci worker * sha256:{HASH}0", "a proof is sha256: and 64 hexadecimal digits"),
        (f"ci worker * md5:{HASH}", "a proof is"),
        ("ci worker * dns:*.example", "a proof is"),
        ("ci worker * uri:spiffe", "a proof is"),
        (f"ci worker * kvt_{'A' * 43}", "a proof is"),
        (f"{'x' * 65} worker * sha256:{HASH}", "a name has 1 to 64"),
        (f"{LINE}\nother reader * sha256:{HASH}", "line 2: its proof is there twice"),
    ],
)
def test_what_is_wrong_is_named_and_not_repeated(tmp_path: Path, line: str, message: str) -> None:
    told = refusal(written(tmp_path, line))
    assert "listen.credentials_file" in told
    assert message in told
    assert "kvt_" not in told
    assert HASH not in told


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    assert "open to others (mode 0640): chmod 600" in refusal(written(tmp_path, LINE, 0o640))
    assert "No such file" in refusal(tmp_path / "none")
