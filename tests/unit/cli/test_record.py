"""What `kvtier record` writes."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import time
import zlib
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kvtier.cli.duration import parse_duration
from kvtier.cli.record import Interrupts, RecordingFile
from kvtier.v1.cache_admin_pb2 import RecordedRequest


def request(seconds_from_now: float, *hashes: int, lost: int = 0) -> RecordedRequest:
    message = RecordedRequest(
        namespace="default/m@01234567",
        block_tokens=16,
        block_bytes=4096,
        group=1,
        shard=2,
        position=3,
        hashes=hashes,
        lost_count=lost,
    )
    message.time.CopyFrom(Timestamp())
    message.time.FromNanoseconds(int((time.time() + seconds_from_now) * 1e9))
    return message


def test_a_line_for_the_version_and_one_for_each_request() -> None:
    text = io.StringIO()
    file = RecordingFile(text)
    file.write(request(2.0, 1, (1 << 64) - 1))
    file.write(request(3.0, 5, lost=7))
    first, second, third = map(json.loads, text.getvalue().splitlines())
    assert first == {"kvtier_recording": 1}
    assert 2000 <= second.pop("timestamp") < 2500
    assert second == {
        "namespace": "default/m@01234567",
        "block_tokens": 16,
        "block_bytes": 4096,
        "group": 1,
        "shard": 2,
        "position": 3,
        "hash_ids": [1, (1 << 64) - 1],
    }
    assert third["hash_ids"] == [5]
    assert file.said == "2 requests, 3 blocks, 7 lost"


def test_times_never_run_backwards() -> None:
    text = io.StringIO()
    file = RecordingFile(text)
    for seconds in (-100.0, 5.0, -7.0, 6.0):
        file.write(request(seconds, 1))
    times = [json.loads(line)["timestamp"] for line in text.getvalue().splitlines()[1:]]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[1] == times[2] < times[3]


def test_every_line_of_a_compressed_file_can_be_read_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "recording.gz"
    with gzip.open(path, "wt") as text:
        file = RecordingFile(text)
        for number in range(5):
            file.write(request(0.0, number))
            so_far = zlib.decompressobj(31).decompress(path.read_bytes())
            assert so_far.endswith(b"\n")
            assert so_far.count(b"\n") == number + 2


def test_an_interrupt_waits_for_the_end_of_a_line() -> None:
    done = []

    def work(interrupts: Interrupts) -> None:
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("a line")

    def wait() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            work(interrupts)
        assert done
        with pytest.raises(KeyboardInterrupt):
            wait()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5h", 5400), ("1h30m", 5400), ("2 d", 172800), ("5 min", 300)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "h", "5 weeks", "1h later", "-5s", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write one such as 90s"):
        parse_duration(text)
