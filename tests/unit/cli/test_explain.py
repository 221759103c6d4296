"""What `kvtier explain` reads and prints."""

from __future__ import annotations

import hashlib
import io
from datetime import datetime
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.cli import explain
from kvtier.cli.token_hashes import hashes_of, read_tokens
from kvtier.cli.vllm_hashes import cbor
from kvtier.errors import InvalidRequestError
from kvtier.hashing import ALGORITHM, block_hashes
from kvtier.v1.block_pb2 import TIER_DISK, TIER_HOST, NamespaceSpec
from kvtier.v1.cache_admin_pb2 import ExplainBlocksResponse, Explanation, HistoryStats, Stats

HERE = Explanation(fate=Explanation.CACHED, tiers=[TIER_HOST, TIER_DISK])
NEVER = Explanation(fate=Explanation.UNKNOWN, reason="never stored")
TOKENS = [1000, 1001, 1002, 1003, 1004]
#: As `vllm.utils.hashing` computes them for TOKENS, two at a time (vLLM 0.32).
VLLM = {
    "vllm-sha256_cbor": (
        "616b424eba42b45e9cad91e5b0027e858e4b082a194a2e3f1464f747b30ef8bf",
        "60ff45dba3cb9d438a7d95b2970625be3738594670e50f5e7e6a29125f7b8372",
    ),
    "vllm-xxhash_cbor": ("de9b07b43e7da2d7e2ef7f89a59bb0ff", "cd76891694d395cff53803523eb67f3d"),
}


def evicted(seconds: int) -> Explanation:
    return Explanation(
        fate=Explanation.EVICTED,
        left_tier=TIER_HOST,
        time=Timestamp(seconds=seconds),
        reason="lru: to make room",
    )


# Tables.


def test_blocks_of_one_fate_are_one_row() -> None:
    first = 1_700_000_000
    found = [HERE] * 2 + [evicted(first + 3), evicted(first), evicted(first + 9)] + [NEVER]
    began = datetime.fromtimestamp(first)
    ended = datetime.fromtimestamp(first + 9)
    assert list(explain.rows(found)) == [
        ("0 to 1", "cached", "HOST, DISK", "-", "-"),
        (
            "2 to 4",
            "evicted",
            "was in HOST",
            f"{began:%Y-%m-%d %H:%M:%S} to {ended:%H:%M:%S}",
            "lru: to make room",
        ),
        ("5", "unknown", "-", "-", "never stored"),
    ]


def test_rows_say_which_tokens_who_uses_them_and_what_differs() -> None:
    leased = Explanation(fate=Explanation.CACHED, tiers=[TIER_HOST], lease_count=2, is_pinned=True)
    refused = Explanation(fate=Explanation.NOT_ADMITTED, left_tier=TIER_HOST, reason="no room")
    sibling = Explanation(
        fate=Explanation.OTHER_LAYOUT,
        tiers=[TIER_HOST],
        reason="stored under default/m@01234567",
        layout_differences=["dtype", "shards"],
    )
    assert list(explain.rows([leased, refused, sibling], block_tokens=16)) == [
        ("0", "0 to 15", "cached", "HOST", "-", "leased; pinned"),
        ("1", "16 to 31", "not admitted", "not in HOST", "-", "no room"),
        (
            "2",
            "32 to 47",
            "other layout",
            "HOST",
            "-",
            "stored under default/m@01234567; differs in dtype, shards",
        ),
    ]


def test_the_summary_counts_what_a_lookup_would_find() -> None:
    assert explain.summary([HERE] * 3, 0) == "3 leading of 3 blocks are here"
    assert explain.summary([HERE, NEVER, HERE, HERE], 16) == (
        "1 leading of 4 blocks are here (16 of 64 tokens), and 2 behind the first gap"
    )


def test_the_reach_of_the_history_is_told() -> None:
    history = HistoryStats(entry_count=5000, capacity=1 << 20, memory_bytes=1 << 24)
    told = ((history, "5,000 of 1,048,576 blocks, 16.0 MiB"), (HistoryStats(), "off"))
    for each, words in told:
        assert explain.reach(Stats(history=each)) == f"history: {words}"
        assert explain.reach(ExplainBlocksResponse(history=each)) == f"history: {words}"
    withheld = "history: shown to those who see all namespaces"
    assert explain.reach(Stats()) == explain.reach(ExplainBlocksResponse()) == withheld


# Tokens.


@pytest.mark.parametrize("text", ["[1, 2, 30]", "1 2 30", " 1\n2\t30\n"])
def test_tokens_are_a_list_or_numbers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    assert read_tokens(str(path)) == [1, 2, 30]


def test_tokens_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("[7]"))
    assert read_tokens("-") == [7]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 two 3", "'two' is no token id"),
        ("[1, -2]", "'-2' is no token id"),
        ("[1, 2.5]", "'2.5' is no token id"),
        ("[1, true]", "'True' is no token id"),
        ("[1, 2", "no JSON"),
        ('{"tokens": [1]}', "write a list of token ids"),
    ],
)
def test_what_is_no_token_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=said):
        read_tokens(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"--tokens .*nothing: No such file"):
        read_tokens(str(tmp_path / "nothing"))


def test_our_own_hashes() -> None:
    spec = NamespaceSpec(hash_algorithm=ALGORITHM)
    assert hashes_of(spec, TOKENS, 2, "", None) == block_hashes(TOKENS, 2)
    assert hashes_of(spec, TOKENS, 2, "salt", None) == block_hashes(TOKENS, 2, extra=b"salt")


@pytest.mark.parametrize("algorithm", VLLM)
def test_hashes_of_vllm(algorithm: str) -> None:
    spec = NamespaceSpec(hash_algorithm=algorithm)
    found = [each.hex() for each in hashes_of(spec, TOKENS, 2, "", None)]
    assert found == list(VLLM[algorithm])


def test_a_block_of_vllm_is_named_by_the_last_of_its_hashes() -> None:
    spec = NamespaceSpec(hash_algorithm="vllm-sha256_cbor", extra={"hash_tokens": "2"})
    [found] = hashes_of(spec, TOKENS, 4, "", None)
    assert found.hex() == VLLM["vllm-sha256_cbor"][1]
    with pytest.raises(InvalidRequestError, match="--block-tokens 3: the engine hashes 2"):
        hashes_of(spec, TOKENS, 3, "", None)


def test_the_seed_of_a_vllm_is_compared() -> None:
    seed = hashlib.sha256(hashlib.sha256(cbor("42")).digest()).hexdigest()[:16]
    spec = NamespaceSpec(hash_algorithm="vllm-sha256_cbor", extra={"hash_seed": seed})
    assert len(hashes_of(spec, TOKENS, 2, "", "42")) == 2
    with pytest.raises(InvalidRequestError, match="PYTHONHASHSEED"):
        hashes_of(spec, TOKENS, 2, "", None)


@pytest.mark.parametrize(
    ("algorithm", "extra", "said"),
    [
        ("", "", "of an unnamed kind"),
        ("sglang", "", "the namespace's hashes are sglang"),
        ("vllm-md5", "", "vllm-md5 is not known"),
        ("vllm-sha256_cbor", "salt", "--extra"),
    ],
)
def test_hashes_that_only_the_engine_knows_are_refused(
    algorithm: str, extra: str, said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        hashes_of(NamespaceSpec(hash_algorithm=algorithm), TOKENS, 2, extra, None)


def test_numbers_are_as_short_as_cbor_allows() -> None:
    heads = {23: "17", 24: "1818", 255: "18ff", 256: "190100", 1 << 16: "1a00010000"}
    for number, encoded in {**heads, 1 << 32: "1b0000000100000000"}.items():
        assert cbor(number).hex() == encoded
    assert cbor((b"\x01", ("a",), None)).hex() == "8341018161" + b"a".hex() + "f6"
