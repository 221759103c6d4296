"""`kvtier demo`, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from kvtier.demo.exchange import Outcome
from kvtier.demo.report import Turn, verdict
from tests.e2e.demo_command import Demo, interrupt, rows_of, session_of
from tests.faults.repetitions import in_full


@pytest.fixture
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """In a directory with a short path: sockets lie below it."""
    return Demo(tmp_path_factory.mktemp("d"))


def test_workers_share_a_prefix_and_find_it_after_a_restart(demo: Demo) -> None:
    done = demo.run("--tokens", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    rows = rows_of(done.stdout)
    assert rows["same tokens"] == ["yes", "yes", "yes", "yes"]
    assert rows["of it from the cache"] == ["0", "256", "320", "256"]
    assert rows["hits in HOST, blocks"] == ["0", "4", "5", "0"]
    assert rows["hits in DISK, blocks"] == ["0", "0", "0", "4"]
    assert rows["prompt, tokens"] == ["300", "300", "361", "300"]
    assert rows["speed-up"][0] == "-"
    assert any(line.endswith("started again: 6 blocks on DISK") for line in lines)
    for tier in ("HOST: 4 blocks, ", "DISK: 6 blocks, "):
        assert any(line.startswith(tier) and " of 4.00 GiB; " in line for line in lines)
    assert lines[-1] == "All 96 generated tokens are those of a run without kvtier."
    assert not demo.remains()


@pytest.mark.faults
@in_full
def test_an_emulated_device_serves_the_third_worker(demo: Demo) -> None:
    done = demo.run("--tokens", "300", "--gpu", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows["hits in GPU cpu (emulated), blocks"] == ["0", "0", "4", "0"]
    assert rows["hits in HOST, blocks"] == ["0", "4", "1", "0"]
    assert rows["same tokens"] == ["yes", "yes", "yes", "yes"]
    assert "GPU cpu (emulated): " in done.stdout
    assert not demo.remains()


def test_a_device_and_two_nodes_exclude_each_other(demo: Demo) -> None:
    done = demo.run("--gpu", "cpu", "--nodes", "2")
    assert done.returncode != 0
    assert "--gpu is for one node" in done.stderr


_RUN_WITH_A_DISK_THAT_GETS_LOST = """
import shutil, sys
from kvtier.demo import run_demo
from kvtier.testing import AgentProcess

def stop_and_lose_disk(agent, stop=AgentProcess.stop):
    status = stop(agent)
    shutil.rmtree(agent.directory / "disk", ignore_errors=True)
    return status

AgentProcess.stop = stop_and_lose_disk
sys.exit(run_demo(tokens=64))
"""


@pytest.mark.faults
@in_full
def test_a_restart_that_loses_disk_is_a_failure(demo: Demo) -> None:
    done = demo.run_python("-c", _RUN_WITH_A_DISK_THAT_GETS_LOST)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "started again: 0 blocks on DISK" in done.stdout
    assert done.stdout.splitlines()[-1] == "No prefix came from DISK for worker 4."
    assert not demo.remains()


def test_a_model_that_does_not_exist_is_named(demo: Demo) -> None:
    done = demo.run("--tokens", "64", "--model", str(demo.directory / "nothing-here"))
    assert done.returncode == 1
    failure = done.stdout[done.stdout.index("kvtier demo failed") :]
    assert failure.startswith("kvtier demo failed: worker 1 ended with status 1")
    assert "nothing-here" in failure
    assert not demo.remains()


def test_an_interrupt_leaves_nothing_behind(demo: Demo) -> None:
    sessions = []

    def interrupt_it(process: subprocess.Popen[str]) -> None:
        sessions.append(process.pid)
        interrupt(process)

    status, output = demo.disturb("worker 1", interrupt_it, "--tokens", "300")
    assert status == 130
    assert output.splitlines()[-1].startswith("kvtier demo was interrupted")
    assert "Traceback" not in output
    assert not demo.remains()
    assert not session_of(sessions[0])


def test_missing_packages_are_named() -> None:
    script = "import sys; sys.modules['torch'] = None; from kvtier.demo import run_demo"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; sys.exit(run_demo())"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'kvtier[transformers]'\n")


def _turn(
    worker: str,
    restored_tokens: int,
    answer: tuple[int, ...],
    *,
    source: str = "",
    hits: Mapping[str, int] | None = None,
) -> Turn:
    outcome = Outcome(
        prompt_tokens=600,
        restored_tokens=restored_tokens,
        cold_seconds=1.0,
        cached_seconds=0.5,
        loaded_bytes=0,
        load_seconds=0.0,
        stored_bytes=0,
        answer=answer,
        reference=(1, 2),
    )
    return Turn(worker, outcome, hits or {}, source)


_FIRST = _turn("worker 1", 0, (1, 2))
_FROM_HOST = {"HOST": 9, "DISK": 0}
_FROM_DISK = {"HOST": 0, "DISK": 9}


def test_verdict_is_bad_if_a_token_differs() -> None:
    wrong = _turn("worker 2", 576, (1, 3), source="HOST", hits=_FROM_HOST)
    is_good, sentence = verdict([_FIRST, wrong])
    assert not is_good
    assert "NOT" in sentence
    assert "worker 2" in sentence


def test_verdict_is_bad_if_nothing_was_found() -> None:
    unserved = _turn("worker 2", 0, (1, 2), source="HOST", hits={"HOST": 0, "DISK": 0})
    assert verdict([_FIRST, unserved]) == (False, "No prefix came from HOST for worker 2.")


def test_verdict_is_bad_if_the_wrong_tier_served() -> None:
    served = _turn("worker 4", 576, (1, 2), source="DISK", hits=_FROM_HOST)
    assert verdict([_FIRST, served]) == (False, "No prefix came from DISK for worker 4.")


def test_verdict_is_bad_if_hits_were_of_no_use() -> None:
    unserved = _turn("worker 4", 0, (1, 2), source="DISK", hits=_FROM_DISK)
    assert verdict([_FIRST, unserved]) == (False, "No prefix came from DISK for worker 4.")


def test_verdict_is_good_otherwise() -> None:
    served = [
        _turn("worker 2", 576, (1, 2), source="HOST", hits=_FROM_HOST),
        _turn("worker 4", 576, (1, 2), source="DISK", hits=_FROM_DISK),
    ]
    assert verdict([_FIRST, *served])[0]
