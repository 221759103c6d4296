"""Behaviour of the readers of traces."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.sim.reading import read_trace
from kvtier.sim.trace import Trace
from tests.unit.sim.trace_files import RECORDING, chains_of, mooncake, recorded, write

SESSIONS = {"session": 0, "block_size": 64}


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_partial_block_is_named_and_never_asked_for(tmp_path: Path, name: str) -> None:
    lines = [mooncake(1000, 1100, [7, 8, 9]), mooncake(2500, 1024, [7, 8]), mooncake(2600, 5, [1])]
    trace = read_trace(write(tmp_path / name, lines))
    assert chains_of(trace) == [[0, 1], [0, 1], []]
    assert (trace.requested_blocks, trace.unique_blocks) == (6, 4)
    assert [each.tokens for each in trace] == [1100, 1024, 5]
    assert [each.seconds for each in trace] == [1.0, 2.5, 2.6]


def test_ranges_of_sessions_are_ids(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 1, "input_length": 64 * 4 + 9, "hash_ranges": [[0, 3], [9, 1]], **SESSIONS},
        {"timestamp": 2, "input_length": 64 * 3, "hash_ranges": [[0, 2], [50, 1]], **SESSIONS},
    ]
    trace = read_trace(write(tmp_path / "a", lines))
    assert chains_of(trace) == [[0, 1, 2, 3], [0, 1, 4]]
    assert trace.block_tokens.tolist() == [64, 64]


def test_small_blocks_make_larger_ones_and_a_remainder_makes_none(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 1, "input_length": 64 * 19, "hash_ranges": [[0, 19]], **SESSIONS},
        {"timestamp": 2, "input_length": 64 * 17, "hash_ranges": [[0, 12], [90, 5]], **SESSIONS},
    ]
    trace = read_trace(write(tmp_path / "a", lines), 512)
    assert chains_of(trace) == [[0, 1], [0, 2]]
    assert (trace.requested_blocks, trace.unique_blocks) == (4, 3)
    assert {each.block_tokens for each in trace} == {512}


def test_regrouping_to_the_same_size_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [mooncake(0, 1100, [7, 8, 9]), mooncake(1, 1024, [7, 8])])
    plain, regrouped = read_trace(path), read_trace(path, 512)
    assert chains_of(plain) == chains_of(regrouped)
    assert (plain.requested_blocks, plain.unique_blocks) == (
        regrouped.requested_blocks,
        regrouped.unique_blocks,
    )


def test_a_partial_block_makes_no_larger_one(tmp_path: Path) -> None:
    lines = [mooncake(0, 4 * 512, [1, 2, 3, 4]), mooncake(1, 3 * 512 + 9, [1, 2, 3, 9])]
    trace = read_trace(write(tmp_path / "a", lines), 1024)
    assert chains_of(trace) == [[0, 1], [0]]
    assert (trace.requested_blocks, trace.unique_blocks) == (3, 2)


def test_a_block_is_what_it_says_after_those_before_it(tmp_path: Path) -> None:
    lines = [mooncake(each, 1024, ids) for each, ids in enumerate([[1, 5], [2, 5], [1, 5]])]
    assert chains_of(read_trace(write(tmp_path / "a", lines))) == [[0, 1], [2, 3], [0, 1]]


def recording(tmp_path: Path, *lines: Mapping[str, object]) -> Trace:
    return read_trace(write(tmp_path / "recording", [RECORDING, *lines]))


def test_a_recording_says_how_large_blocks_are(tmp_path: Path) -> None:
    big = 2**64 - 1
    trace = recording(
        tmp_path, recorded(5, [big, 2]), recorded(6, [big, 3], block_bytes=8192), recorded(7, [big])
    )
    assert chains_of(trace) == [[0, 1], [0, 2], [0]]
    assert trace.block_bytes == (4096 * 2 + 8192) / 3
    assert [each.tokens for each in trace] == [32, 32, 16]


def test_blocks_whose_tokens_nobody_recorded_have_those_that_are_given(tmp_path: Path) -> None:
    lines = [RECORDING, recorded(5, [1, 2], block_tokens=0), recorded(2000, [1, 3, 4])]
    trace = read_trace(write(tmp_path / "a", lines), 32)
    assert chains_of(trace) == [[0, 1], [2]]
    assert [each.tokens for each in trace] == [64, 48]


@pytest.mark.parametrize("other", [{"namespace": "t/m@00"}, {"group": 1}, {"shard": 1}])
def test_lanes_of_a_recording_have_blocks_of_their_own(
    tmp_path: Path, other: dict[str, object]
) -> None:
    trace = recording(tmp_path, recorded(5, [4, 5]), recorded(6, [4, 5], **other))
    assert sorted(chains_of(trace)) == [[0, 1], [2, 3]]


def test_parts_of_a_request_are_one(tmp_path: Path) -> None:
    trace = recording(
        tmp_path,
        recorded(5, [1, 2]),
        recorded(5, [1, 2], shard=1),
        recorded(6, [3], position=2),
        recorded(6, [3], position=2, shard=1),
        recorded(9000, [1, 2, 4]),
    )
    assert sorted(map(len, chains_of(trace))) == [3, 3, 3]
    assert trace.left_out == 0


@pytest.mark.parametrize("late", [{"position": 1}, {"timestamp": 2000}, {"namespace": "t/m@00"}])
def test_what_begins_in_the_middle_is_left_out(tmp_path: Path, late: dict[str, object]) -> None:
    trace = recording(tmp_path, recorded(5, [1, 2]), {**recorded(6, [3], position=2), **late})
    assert chains_of(trace) == [[0, 1]]
    assert trace.left_out == 1


def test_clocks_that_go_back_stand_still(tmp_path: Path) -> None:
    lines = [mooncake(each, 512, [1]) for each in (3000, 1000, 4000)]
    trace = read_trace(write(tmp_path / "a", lines))
    assert trace.seconds.tolist() == [3.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("\x00\xff", "not JSON"),
        (mooncake(0, -1, [1]), "input_length is not a whole number"),
        (mooncake(0, 512, [], hash_ids=["1"]), "hash_ids has something else"),
        (mooncake(0, 512, [True]), "hash_ids has something else"),
        (mooncake(0, 512, [2**64]), "hash_ids has something else"),
        ({"timestamp": 0, "input_length": 5}, "hash_ids is not a list: null"),
        ({"timestamp": 0, "hash_ids": []}, "input_length is missing"),
        ({"input_length": 5, "hash_ids": []}, "timestamp is not a number"),
        (mooncake(float("nan"), 5, []), "timestamp is not a number"),
        (mooncake(0, 512, [1], block_size=0), "block_size is 0"),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, line: Mapping[str, object] | str, complaint: str
) -> None:
    path = write(tmp_path / "trace.jsonl", [mooncake(0, 512, [1]), "", line])
    with pytest.raises(ConfigError, match=r"trace\.jsonl:3: ") as caught:
        read_trace(path)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("ranges", [3, [[1]], [[0, -1]], [["a", 1]], [[2**64 - 1, 2]]])
def test_bad_ranges_are_named(tmp_path: Path, ranges: object) -> None:
    line = {"timestamp": 0, "input_length": 640, "hash_ranges": ranges, **SESSIONS}
    with pytest.raises(ConfigError, match="a:1: hash_ranges is not a list"):
        read_trace(write(tmp_path / "a", [line]))


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["{}"], "a:1: not a trace: its first line has neither hash_ids"),
        ([{"kvtier_recording": 2}], "a:1: kvtier_recording is 2: this kvtier reads 1"),
        ([RECORDING, recorded(0, [1], namespace=3)], "a:2: namespace is not a text"),
        ([RECORDING, recorded(0, [1], block_tokens=0)], "block has; give --block-tokens"),
        ([], "a: no request for a full block"),
        ([mooncake(0, 0, [])], "a: no request for a full block"),
    ],
)
def test_what_is_no_trace_says_so(
    tmp_path: Path, lines: Sequence[Mapping[str, object] | str], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(write(tmp_path / "a", lines))
    assert complaint in str(caught.value)


def test_blocks_are_not_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [mooncake(0, 512, [1])])
    with pytest.raises(ConfigError, match="a:1: blocks of 512 tokens cannot be regrouped to 768"):
        read_trace(path, 768)


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: No such file"):
        read_trace(tmp_path / "none")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_trace(tmp_path)
    packed = gzip.compress(b'{"timestamp": 0, "input_length": 512, "hash_ids": [1]}\n' * 1000)
    (tmp_path / "cut.gz").write_bytes(packed[:-20])
    with pytest.raises(ConfigError, match=r"cut\.gz:\d+: cannot be read further"):
        read_trace(tmp_path / "cut.gz")


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", [mooncake(each, 512, [each]) for each in range(2000)])
    seen: list[tuple[int, int]] = []
    read_trace(path, progress=lambda done, whole: seen.append((done, whole)))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    assert len(seen) > 2
    assert all(done <= whole for done, whole in seen)
