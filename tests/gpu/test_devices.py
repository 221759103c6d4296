"""The tier on real memory of a device: the emulated one here, and with the mark `cuda` the
accelerator of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kvtier import BlockStatus, Client
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing import AgentProcess, payload_for
from kvtier.testing.worker_process import Pipe, WorkerProcess
from kvtier.tiers.gpu import open_accelerator
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, payloads, spec_of, store
from tests.faults.waiting import wait_until
from tests.gpu.node import load, running_node

_COUNT = 64
_DEADLINE_SECONDS = 30.0
#: A worker imports torch first.
_IMPORT_SECONDS = 120.0
# A build for a kind of device names it also where there is none.
_ACCELERATOR = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
_NONE = "no accelerator here: torch.accelerator.is_available() is False"
_REAL = pytest.param(
    f"{_ACCELERATOR.type}:0" if _ACCELERATOR is not None else "cuda:0",
    id="accelerator",
    marks=[pytest.mark.cuda, pytest.mark.skipif(_ACCELERATOR is None, reason=_NONE)],
)


@pytest.fixture(params=[pytest.param("cpu", id="emulated"), _REAL])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[_REAL])
def accelerator(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def agent(device: str) -> Iterator[AgentProcess]:
    settings = {
        "tiers.host.capacity": "64MiB",
        "tiers.host.memory_reserve": 0,
        "tiers.gpu.devices": f"[{{device: '{device}', capacity: 64MiB}}]",
    }
    with AgentProcess(settings=settings) as agent:
        yield agent


def bring(agent: AgentProcess, client: Client, name: str = "a", count: int = _COUNT) -> None:
    """A sequence that is on the device."""
    namespace = client.namespace(spec_of())
    assert store(namespace, name, count) == count
    with AdminClient(agent.admin_address) as admin:
        before = admin.get_stats().tiers[0].stored_count
        with namespace.load(hashes_of(name, count)) as loaded:
            assert loaded.count == count
            wait_until(
                lambda: admin.get_stats().tiers[0].stored_count - before == count,
                _DEADLINE_SECONDS,
            )


def test_bytes_go_there_and_back(agent: AgentProcess, device: str) -> None:
    """Between tensors on the device, HOST and the tier there."""
    hashes, spec = hashes_of("a", _COUNT), spec_of()
    with (
        Client(agent.address, device=device, transport="memory", timeout_seconds=10.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        namespace = client.namespace(spec)
        blocks = torch.from_numpy(np.stack(payloads(spec, hashes))).to(device)
        assert set(namespace.store(hashes, blocks)) == {BlockStatus.OK}
        assert load(namespace, hashes, device) == Verdict(_COUNT)
        wait_until(lambda: admin.get_stats().tiers[0].stored_count == _COUNT, _DEADLINE_SECONDS)
        assert load(namespace, hashes, device) == Verdict(_COUNT)
        assert load(namespace, hashes, "cpu") == Verdict(_COUNT)
        gpu = admin.get_stats().tiers[0]
        assert gpu.hit_count == 2 * _COUNT
        assert gpu.device == ("cpu (emulated)" if device == "cpu" else gpu.device)
        with namespace.load(hashes) as loaded:
            assert all(isinstance(view, torch.Tensor) for view in loaded.views)
            assert {view.device.type for view in loaded.views} == {device.partition(":")[0]}
            assert loaded.valid()


def read_on_device(pipe: Pipe, address: str, device: str) -> None:
    """A worker: how many blocks of `a` are right, and how many views are tensors."""
    with Client(address, device=device, transport="memory", timeout_seconds=10.0) as client:
        namespace = client.namespace(spec_of())
        with namespace.load(hashes_of("a", _COUNT)) as loaded:
            tensors = sum(isinstance(view, torch.Tensor) for view in loaded.views)
        verdict = load(namespace, hashes_of("a", _COUNT), device)
        pipe.say([verdict.right, verdict.wrong, tensors])
        pipe.hear()


def test_other_processes_open_what_is_on_the_device(agent: AgentProcess, device: str) -> None:
    with Client(agent.address, device=device, transport="memory", timeout_seconds=10.0) as client:
        bring(agent, client)
    with WorkerProcess(read_on_device, agent.address, device) as other:
        assert other.hear(_IMPORT_SECONDS) == [_COUNT, 0, _COUNT]


def test_memory_of_a_device_that_is_not_there_stays_off() -> None:
    with pytest.raises(OSError, match=r"torch has no|there are"):
        open_accelerator("cuda:99" if torch.cuda.is_available() else "cuda:0")


# Of a real device only.


def test_all_memory_is_back_when_the_agent_stops(accelerator: str) -> None:
    module: Any = torch.get_device_module(accelerator)
    before = module.mem_get_info(0)[0]
    settings = {
        "tiers.host.capacity": "64MiB",
        "tiers.gpu.devices": f"[{{device: '{accelerator}', capacity: 64MiB}}]",
    }
    with AgentProcess(settings=settings) as agent:
        with Client(agent.address, device=accelerator, transport="memory") as client:
            bring(agent, client)
        assert module.mem_get_info(0)[0] <= before - _COUNT * BLOCK_BYTES
    wait_until(lambda: module.mem_get_info(0)[0] >= before, _DEADLINE_SECONDS)


def test_an_extent_that_is_closed_is_the_devices_again(accelerator: str) -> None:
    device = open_accelerator(accelerator)
    before = device.available_bytes()
    memory = device.allocate(16, 4 << 20)
    assert device.available_bytes() <= before - (64 << 20)
    memory.close()
    assert device.available_bytes() >= before


def test_out_of_memory_is_an_error_that_leaves_nothing(accelerator: str) -> None:
    device = open_accelerator(accelerator)
    before = device.available_bytes()
    with pytest.raises(OSError, match="out of memory"):
        device.allocate(1, 2 * before)
    assert device.available_bytes() >= before


def test_the_default_stream_is_not_waited_for(accelerator: str) -> None:
    """A long kernel on the worker's stream does not keep the agent's copies."""
    device = open_accelerator(accelerator)
    memory = device.allocate(16, 4 << 20)
    source = np.full((16, 4 << 20), 7, np.uint8)
    unpin = device.pin(source)
    matrix = torch.ones((8192, 8192), device=accelerator)
    torch.accelerator.synchronize()
    busy = torch.Event(accelerator)
    for _ in range(64):
        matrix = (matrix @ matrix).clamp(max=1)
    busy.record()
    ended: list[bool] = []

    def copy() -> None:
        device.copy([(source, memory.cells)]).wait()
        ended.append(busy.query())

    thread = threading.Thread(target=copy)  # movers have streams of their own
    thread.start()
    thread.join()
    assert ended == [False], "the copy ended after the kernels"
    torch.accelerator.synchronize()
    unpin()
    assert bool((memory.cells == 7).all())
    memory.close()


def test_registered_memory_is_copied_faster(accelerator: str) -> None:
    device = open_accelerator(accelerator)
    memory = device.allocate(16, 4 << 20)
    source = np.full((16, 4 << 20), 7, np.uint8)

    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(8):
            device.copy([(source, memory.cells)]).wait()
        return time.perf_counter() - started

    pageable = min(seconds() for _ in range(3))
    unpin = device.pin(source)
    pinned = min(seconds() for _ in range(3))
    with pytest.raises(OSError, match="cudaHostRegister"):
        device.pin(source)  # what cannot be registered is an error, and no more
    unpin()
    memory.close()
    assert pinned < pageable


def test_the_whole_agent_on_the_accelerator(accelerator: str) -> None:
    with (
        running_node(
            {accelerator: open_accelerator(accelerator)},
            device_capacity="64MiB",
            tiers__gpu__policy="hd",
        ) as node,
        Client(node.address, device=accelerator, transport="memory") as client,
    ):
        namespace, hashes = client.namespace(spec_of()), hashes_of("a", _COUNT)
        store(namespace, "a", _COUNT)
        for _ in range(3):
            assert load(namespace, hashes, accelerator) == Verdict(_COUNT)
            node.settle()
        assert node.stats().hit_count == _COUNT * 2
        assert node.stats(Tier.HOST).hit_count == _COUNT
        assert node.agent.gpu.pinning.pinned_bytes > 0


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.alone), _REAL])
def test_the_bench_has_its_figures(device: str) -> None:
    command = [sys.executable, "-m", "kvtier", "bench", "gpu", "--device", device, "--json"]
    command += ["--batch", "16", "--seconds", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    for name in ("limit_h2d_gbps", "h2d_ratio", "limit_d2d_gbps", "d2d_ratio"):
        assert measured[name] > 0
    assert measured["device"] == "cpu (emulated)" or device != "cpu"


def test_payloads_differ() -> None:
    """That the judge above can tell blocks apart."""
    one, other = (payload_for(each, 64, namespace="a") for each in hashes_of("a", 2))
    assert not np.array_equal(one, other)
