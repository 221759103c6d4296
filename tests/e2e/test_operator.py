"""Every command against two nodes under load: what an operator reads, and what scripts get."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from kvtier.cli.app import app
from tests.docs.cli_page import commands
from tests.e2e.terminal import COLUMNS, on_terminal
from tests.e2e.two_nodes import BLOCK_TOKENS, CHAT, HASHES, REQUEST, TOKENS, TwoNodes, two_nodes

#: They have tests of their own: daemons, screens, stories, measurements, what needs no agent.
ELSEWHERE = {
    *("agent", "bench", "demo", "doctor", "top", "config", "plan", "simulate", "version", "token"),
}
#: A table folds names that have no room; whatever else was cut shows this.
CUT = "…"
_SENTENCE = re.compile(r"^kvtier: |\[y/N\]")


class Operator:
    """Runs commands on node 1, on a terminal and for a script."""

    def __init__(self, nodes: TwoNodes) -> None:
        self.address = nodes.one.agent.admin_address
        self.seen: set[str] = set()

    def read(self, *arguments: str, code: int = 0, answer: str = "", may_cut: bool = False) -> str:
        """What stands on the screen, judged for what holds of all; in one line."""
        self._note(arguments)
        screen = on_terminal(*arguments, answer=answer, KVTIER_ADMIN_ADDRESS=self.address)
        assert screen.code == code, (arguments, screen.text)
        # A terminal folds questions, and what is said of errors.
        tables = [each for each in screen.lines if not _SENTENCE.search(each)]
        assert max(map(len, tables), default=0) <= COLUMNS, screen.text
        assert "Traceback" not in screen.text
        assert may_cut or CUT not in screen.text, screen.text
        assert screen.text.strip(), arguments
        return screen.words

    def said(self, *arguments: str) -> str:
        """What a command without a table says; in this process, which takes less time."""
        self._note(arguments)
        environ = {"KVTIER_ADMIN_ADDRESS": self.address}
        done = CliRunner().invoke(app, [*arguments], env=environ)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        assert "\x1b" not in done.stdout
        return done.stdout

    def script(self, *arguments: str) -> Any:
        """The last object that a script gets."""
        documents = [json.loads(line) for line in self.said(*arguments, "--json").splitlines()]
        assert documents, arguments
        return documents[-1]

    def _note(self, arguments: tuple[str, ...]) -> None:
        words = [each for each in arguments[:2] if each.isalpha()]
        self.seen |= {" ".join(words[:1]), " ".join(words)}


def test_every_command_against_two_nodes_under_load(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    with two_nodes(tmp_path) as nodes:
        operator = Operator(nodes)
        for part in (_sees, _names, _lists, _pins_and_warms, _records, _changes, _removes):
            part(operator, nodes, tmp_path)
        assert not list(_unseen(operator.seen))
        seen = nodes.load.writing, nodes.load.reading, nodes.load.hot
        assert all(each.outcome.right and not each.outcome.wrong for each in seen)


def _unseen(seen: set[str]) -> Iterator[str]:
    """Commands that nobody has run here."""
    for path, _ in commands(typer.main.get_command(app)):
        if path[1] not in ELSEWHERE and " ".join(path[1:]) not in seen:
            yield " ".join(path)


def _sees(operator: Operator, nodes: TwoNodes, path: Path) -> None:
    text = operator.read("stats")
    assert "HOST DISK CLUSTER" in text
    assert "state active active active" in text
    assert operator.script("stats")["namespace_count"] == 4
    assert "capacity 64.0 MiB 128 MiB" in text
    assert operator.script("stats", "--namespace", CHAT.label)["namespace_count"] == 1

    text = operator.read("tiers")
    assert "HOST active 64.0 MiB" in text
    assert "DISK active 128 MiB" in text
    assert [tier["tier"] for tier in operator.script("tiers")["tiers"]] == [
        *("TIER_HOST", "TIER_DISK", "TIER_CLUSTER"),
    ]
    text = operator.read("sessions")
    assert CHAT.label in text.replace(" ", "")
    assert len(operator.script("sessions")["sessions"]) >= 3

    text = operator.read("cluster", "nodes")
    assert "node-1 *" in text
    assert "node-2" in text
    [own] = [each for each in operator.script("cluster", "nodes")["nodes"] if each["is_self"]]
    assert own["name"] == "node-1"


def _names(operator: Operator, nodes: TwoNodes, path: Path) -> None:
    """Namespaces, and a prefix named in each of the ways."""
    text = operator.read("namespaces")
    assert CHAT.label in text
    assert "acme/chat has 2 layouts, which share nothing; they differ in:" in text
    assert f"dtype: bf16 (@{CHAT.layout_digest.hex()[:8]}), fp8_e4m3" in text
    assert "hash_algorithm sha256-chain-u32" in operator.read("namespaces", "acme/chat")
    assert len(operator.script("namespaces", "acme/chat")["namespaces"]) == 2

    text = operator.read("requests", "--namespace", CHAT.label)
    # A name that is too long for its column goes on below.
    assert REQUEST in text.replace(" ", "") or f"{REQUEST[:20]}" in text
    assert "first" in text
    latest, first = operator.script("requests")["requests"]
    assert (latest["request_id"], first["request_id"]) == (REQUEST, "first")
    assert latest["lookups"][0]["found_count"] == latest["lookups"][0]["block_count"] == 24
    assert first["lookups"][0]["found_count"] == 0

    (path / "prompt.json").write_text(json.dumps(TOKENS))
    (path / "prompt.txt").write_text("".join(f"w{token} " for token in TOKENS))
    ways = (
        [each.hex() for each in HASHES],
        ["--request", REQUEST],
        ["--tokens", str(path / "prompt.json")],
        ["--text", str(path / "prompt.txt"), "--tokenizer", str(_tokenizer(path))],
    )
    for way in ways:
        blocks = operator.script("explain", CHAT.label, *way)["blocks"]
        assert [each["hash"] for each in blocks] == [each.hex() for each in HASHES]
        assert {each["fate"] for each in blocks} == {"CACHED"}
    text = operator.read("explain", CHAT.label, "--tokens", str(path / "prompt.json"))
    assert f"24 leading of 24 blocks are here ({24 * BLOCK_TOKENS} of" in text
    # One layout has it.
    assert len(operator.script("explain", "acme/chat", "--request", "first")["blocks"]) == 24
    assert f"choose one of {CHAT.label}" in operator.read("ls", "acme/chat", code=2)


def _tokenizer(path: Path) -> Path:
    """One for which `w1000` is token 1000; the directory of a model."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{token}": token for token in range(2000)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (path / "model").mkdir()
    made.save(str(path / "model" / "tokenizer.json"))
    return path / "model"


def _lists(operator: Operator, nodes: TwoNodes, path: Path) -> None:
    text = operator.read("ls", CHAT.label, "--tier", "disk", "--limit", "5", may_cut=True)
    assert "5 blocks, and more: --page=" in text
    text = operator.read("events", CHAT.label, may_cut=True)
    assert re.search(r"stored DISK \d+ blocks", text), text
    assert operator.script("events", CHAT.label)["namespace"] == CHAT.label
    page = operator.script("ls", CHAT.label, "--tier", "disk", "--limit", "20")
    rest = operator.script("ls", CHAT.label, "--tier", "disk", f"--page={page['next_page_token']}")
    listed = [each["block_hash"] for each in page["blocks"] + rest["blocks"]]
    assert sorted(listed) == sorted(each.hex() for each in HASHES)
    assert rest["next_page_token"] == ""
    [prefix] = operator.script("ls", CHAT.label, "--prefixes", "--tier", "disk")["blocks"]
    assert (prefix["block_hash"], prefix["position"]) == (HASHES[-1].hex(), 23)
    text = operator.read("ls", CHAT.label, "--prefixes", "--tier", "disk", may_cut=True)
    assert f"24 {24 * BLOCK_TOKENS} 1.50 MiB" in text
    assert "1 prefix" in text
    used = operator.script("ls", "default/hot", "--tier", "host", "--sort", "hits")["blocks"]
    assert used[0]["hit_count"] >= used[-1]["hit_count"] > 0
    assert len(used) == 16
    named = operator.script("ls", CHAT.label, "--request", REQUEST, "--tier", "disk")["blocks"]
    assert [each["position"] for each in named] == list(range(24))
    assert operator.script("ls", CHAT.label, "--older-than", "1d")["blocks"] == []


def _pins_and_warms(operator: Operator, nodes: TwoNodes, path: Path) -> None:
    told = operator.script("warm", CHAT.label, "--request", REQUEST, "--wait")
    assert told == {"accepted_count": 24, "ready_count": 24}
    text = operator.said("warm", CHAT.label, "--request", REQUEST)
    assert text == "24 of 24 blocks accepted, 24 in HOST\n"
    text = operator.said(
        "pin", CHAT.label, "--request", REQUEST, "--ttl", "1h", "--reason", "system prompt"
    )
    assert "24 of 24 blocks" in text
    assert "system prompt" in operator.read("pins")
    assert "pinned" in operator.read("ls", CHAT.label, "--pinned", "--tier", "host", may_cut=True)
    [pin] = operator.script("pins")["pins"]
    assert pin["block_count"] == 24
    text = operator.said("evict", CHAT.label, "--request", REQUEST, "--dry-run")
    # From CLUSTER they would go: pins are of this node.
    assert "48 blocks left, being pinned\n" in text
    assert "has ended" in operator.said("unpin", pin["pin_id"])
    made = operator.script("pin", CHAT.label, HASHES[0].hex(), "--ttl", "1m")
    assert operator.script("unpin", made["pin_id"]) == {}
    assert operator.script("pins") == {"pins": []}


def _records(operator: Operator, nodes: TwoNodes, path: Path) -> None:
    file = str(path / "recording.jsonl")
    assert operator.script("record", file, "--duration", "0.5s")["requests"] > 0
    assert "recorded" in operator.said("record", file, "--duration", "0.5s", "--yes")


def _changes(operator: Operator, nodes: TwoNodes, path: Path) -> None:
    assert "flushed" in operator.said("flush")
    assert operator.script("flush")["flushed_bytes"] >= 0
    assert "all sound" in operator.said("scrub", "--rate", "1GiB")
    assert operator.script("scrub", "--rate", "1GiB")["done"]
    assert operator.script("tier", "set", "host.capacity=60MiB", "--yes")["done"]
    assert "HOST: capacity 64.0 MiB" in operator.said("tier", "set", "host.capacity=64MiB")


def _removes(operator: Operator, nodes: TwoNodes, path: Path) -> None:
    shared = ("evict", "default/shared", "--tier", "host")
    text = operator.read(*shared, "--down-to", "20MiB", code=1, answer="n\n")
    assert "from HOST until 20.0 MiB are used, of default/shared? [y/N]" in text
    assert "Aborted" in text
    text = operator.said(*shared, "--down-to", "20MiB", "--yes")
    assert "HOST: 20.0 MiB used" in text
    assert operator.script(*shared, "--older-than", "0.5s", "--yes")["evicted_count"] >= 0
    assert operator.script(*shared, "--older-than", "1h", "--dry-run")["evicted_count"] == 0
    text = operator.said("evict", CHAT.label, HASHES[20].hex(), "--tier", "disk", "--yes")
    assert f"evicted 4 blocks of {CHAT.label} from DISK" in text
    fates = operator.script("explain", CHAT.label, "--request", REQUEST)["blocks"]
    assert ["TIER_DISK" in each["tiers"] for each in fates[:20]] == [True] * 20
    text = operator.read("invalidate", "acme/chat", answer="y\n")
    assert "Invalidate" in text
    assert "of 2 namespaces (acme/chat@" in text
    assert operator.script("invalidate", "acme/chat", "--dry-run")["block_count"] == 0
    assert "drained" in operator.said("drain", "--grace", "1")
    assert operator.said("resume") == "the agent takes work\n"
    assert operator.script("drain", "--grace", "0")["done"]
    assert operator.script("resume") == {}
