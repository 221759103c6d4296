"""HiCache's storage backend between SGLang's own classes and a real agent.

The classes are those of the published wheel; the engine itself has no build for a machine without
a GPU.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvtier.client.admin import AdminClient
from kvtier.testing import AgentProcess
from tests.faults.waiting import wait_until
from tests.integrations import sglang_wheel

pytestmark = pytest.mark.skipif(
    not sglang_wheel.is_installed(), reason="SGLang's wheel is not installed (make test does)"
)

PAGE_TOKENS, LAYERS, HEADS, HEAD_DIM = 16, 3, 2, 8
#: Of 25 pages.
POOL: dict[str, Any] = {
    "host_to_device_ratio": 2.0,
    "host_size": 0,
    "page_size": PAGE_TOKENS,
    "pin_memory": False,
    "device_capacity_tokens": 12 * PAGE_TOKENS,
    "start_layer": 0,
    "end_layer": LAYERS,
}
LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head")
PAGES = 6
KEYS = [hashlib.sha256(bytes([page])).hexdigest() for page in range(PAGES)]


@pytest.fixture(scope="module")
def sglang() -> Iterator[SimpleNamespace]:
    with sglang_wheel.importable():
        from sglang.srt.mem_cache import hicache_storage
        from sglang.srt.mem_cache.pool_host import base, mha, mla
        from sglang.srt.mem_cache.storage import backend_factory

        yield SimpleNamespace(
            storage=hicache_storage,
            mha=mha.MHATokenToKVPoolHost,
            mla=mla.MLATokenToKVPoolHost,
            memory=base.host_memory_budget_scope,
            factory=backend_factory.StorageBackendFactory,
        )


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with AgentProcess(settings={"tiers.host.capacity": "64MiB"}) as agent:
        yield agent


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A namespace of each test's own."""
    return hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]


class Engine:
    """What of an SGLang worker is between its host memory and a storage backend."""

    def __init__(
        self,
        sglang: SimpleNamespace,
        address: str,
        name: str,
        *,
        layout: str = "page_first",
        mla: bool = False,
        interface_v1: int = 1,
        settings: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self._info = sglang.storage.HiCacheStorageExtraInfo
        with sglang.memory(64 << 20):
            self.pool = (_mla_pool if mla else _mha_pool)(sglang, layout)
        defaults: dict[str, Any] = {
            "tp_rank": 0,
            "tp_size": 1,
            "pp_rank": 0,
            "pp_size": 1,
            "attn_cp_rank": 0,
            "attn_cp_size": 1,
            "is_mla_model": mla,
            "enable_storage_metrics": False,
            "is_page_first_layout": layout == "page_first",
            "model_name": "models/tiny",
        }
        kvtier = {"address": address, "namespace": name, "revision": "1", **(settings or {})}
        config["extra_config"] = {
            "backend_name": "kvtier",
            "module_path": "kvtier.integrations.sglang",
            "class_name": "KvtierHiCache",
            "interface_v1": interface_v1,
            "kvtier": kvtier,
            **(extra or {}),
        }
        self.backend = sglang.factory.create_backend(
            "dynamic",
            sglang.storage.HiCacheStorageConfig(**defaults | config),
            self.pool,
        )
        self.backend.register_mem_pool_host(self.pool)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()

    def fill(self, pages: range, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Puts noise into new pages of the pool: their tokens, and what each page holds."""
        indices = self.pool.alloc(len(pages) * PAGE_TOKENS)
        for index, page in enumerate(pages):
            noise = torch.Generator().manual_seed(1000 * seed + page)
            flat = self.pool.get_dummy_flat_data_page()
            flat.copy_(torch.rand(flat.shape, generator=noise))
            self.pool.set_from_flat_data_page(int(indices[index * PAGE_TOKENS]), flat)
        return indices, self.pages(indices)

    def empty(self, count: int) -> torch.Tensor:
        """The tokens of new pages of zeros."""
        indices: torch.Tensor = self.pool.alloc(count * PAGE_TOKENS)
        zeros = torch.zeros_like(self.pool.get_dummy_flat_data_page())
        for start in range(0, len(indices), PAGE_TOKENS):
            self.pool.set_from_flat_data_page(int(indices[start]), zeros)
        return indices

    def pages(self, indices: torch.Tensor) -> list[torch.Tensor]:
        return [
            self.pool.get_data_page(int(index)).clone() for index in indices[::PAGE_TOKENS].tolist()
        ]

    def after(self, keys: list[str]) -> Any:
        return self._info(prefix_keys=keys)


def _mha_pool(sglang: SimpleNamespace, layout: str) -> Any:
    buffers = SimpleNamespace(
        k=[torch.empty(0)] * LAYERS,
        v=[torch.empty(0)] * LAYERS,
        k_data_ptrs=torch.zeros(LAYERS),
        v_data_ptrs=torch.zeros(LAYERS),
    )
    info = SimpleNamespace(
        buffers=buffers,
        device=torch.device("cpu"),
        dtype=torch.float32,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        head_num=HEADS,
        scales=None,
        transfer_buffers=None,
        validate=lambda: None,
    )
    return sglang.mha(info, layout=layout, **POOL)


def _mla_pool(sglang: SimpleNamespace, layout: str) -> Any:
    info = SimpleNamespace(
        buffers=(torch.empty(0),) * LAYERS,
        data_ptrs=torch.zeros(LAYERS),
        layer_indices=tuple(range(LAYERS)),
        device_layer_num=LAYERS,
        kv_lora_rank=24,
        qk_rope_head_dim=8,
        kv_cache_dim=32,
        dtype=torch.float32,
        device=torch.device("cpu"),
        packed_fp8=False,
        scales=None,
        validate=lambda: None,
    )
    return sglang.mla(info, layout=layout, target_layer_num=LAYERS, **POOL)


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_come_back_in_another_worker(
    sglang: SimpleNamespace, agent: AgentProcess, name: str, layout: str
) -> None:
    with (
        Engine(sglang, agent.address, name, layout=layout) as one,
        Engine(sglang, agent.address, name, layout=layout) as other,
    ):
        stored, wanted = one.fill(range(PAGES))
        assert other.backend.batch_exists(KEYS) == 0
        assert one.backend.batch_set_v1(KEYS, stored) == [True] * PAGES
        assert other.backend.batch_exists(KEYS) == PAGES
        got = other.empty(PAGES)
        assert other.backend.batch_get_v1(KEYS, got) == [True] * PAGES
        assert same(other.pages(got), wanted)


def test_what_is_not_there_ends_a_load(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    with Engine(sglang, agent.address, name) as engine:
        stored, wanted = engine.fill(range(PAGES))
        assert all(engine.backend.batch_set_v1(KEYS[:4], stored[: 4 * PAGE_TOKENS]))
        assert engine.backend.batch_exists(KEYS) == 4
        assert engine.backend.exists(KEYS[3])
        assert not engine.backend.exists(KEYS[4])
        got = engine.empty(PAGES)
        assert engine.backend.batch_get_v1(KEYS, got) == [True] * 4 + [False] * 2
        assert same(engine.pages(got)[:4], wanted[:4])


def test_what_is_there_already_counts_as_stored(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    with Engine(sglang, agent.address, name) as engine:
        first, wanted = engine.fill(range(PAGES))
        second, _ = engine.fill(range(PAGES), seed=1)
        assert all(engine.backend.batch_set_v1(KEYS, first))
        assert all(engine.backend.batch_set_v1(KEYS, second))
        got = engine.empty(PAGES)
        assert all(engine.backend.batch_get_v1(KEYS, got))
        assert same(engine.pages(got), wanted)


def test_pages_continue_what_comes_before_them(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    with Engine(sglang, agent.address, name) as engine:
        stored, _ = engine.fill(range(PAGES))
        half = 3 * PAGE_TOKENS
        after = engine.after(KEYS[:3])
        # What would continue a prefix that is nowhere could never be found.
        assert engine.backend.batch_set_v1(KEYS[3:], stored[half:], after) == [False] * 3
        assert all(engine.backend.batch_set_v1(KEYS[:3], stored[:half]))
        assert all(engine.backend.batch_set_v1(KEYS[3:], stored[half:], after))
        with AdminClient(agent.admin_address) as admin:
            admin.evict_blocks(f"default/{name}", hashes=[bytes.fromhex(KEYS[2])])
        assert engine.backend.batch_exists(KEYS) == 2
        assert engine.backend.batch_exists(KEYS[3:], after) == 0  # they went with their parent


def test_shards_have_pages_of_their_own(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    ranks = [(tp, pp) for pp in range(2) for tp in range(2)]
    for tp, pp in ranks:
        place: dict[str, Any] = {"tp_rank": tp, "tp_size": 2, "pp_rank": pp, "pp_size": 2}
        with Engine(sglang, agent.address, name, **place) as engine:
            assert engine.backend.batch_exists(KEYS) == 0
            stored, _ = engine.fill(range(PAGES), seed=1 + tp + 2 * pp)
            assert all(engine.backend.batch_set_v1(KEYS, stored))
    for tp, pp in ranks:
        place = {"tp_rank": tp, "tp_size": 2, "pp_rank": pp, "pp_size": 2}
        with Engine(sglang, agent.address, name, **place) as engine:
            _, wanted = engine.fill(range(PAGES), seed=1 + tp + 2 * pp)
            got = engine.empty(PAGES)
            assert all(engine.backend.batch_get_v1(KEYS, got))
            assert same(engine.pages(got), wanted)


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_ranks_share_what_is_the_same_for_all_heads(
    sglang: SimpleNamespace, agent: AgentProcess, name: str, layout: str
) -> None:
    with (
        Engine(sglang, agent.address, name, mla=True, layout=layout, tp_size=2) as first,
        Engine(sglang, agent.address, name, mla=True, layout=layout, tp_size=2, tp_rank=1) as other,
    ):
        stored, wanted = first.fill(range(PAGES))
        assert all(first.backend.batch_set_v1(KEYS, stored))
        got = other.empty(PAGES)
        assert all(other.backend.batch_get_v1(KEYS, got))
        assert same(other.pages(got), wanted)


def test_pages_as_tensors(sglang: SimpleNamespace, agent: AgentProcess, name: str) -> None:
    """The older interface, and that its pages are none of the newer one's."""
    with (
        Engine(sglang, agent.address, name, layout="layer_first", interface_v1=0) as engine,
        Engine(sglang, agent.address, name, layout="layer_first", interface_v1=1) as newer,
    ):
        _, wanted = engine.fill(range(PAGES))
        assert engine.backend.batch_set(KEYS[1:], wanted[1:])
        assert engine.backend.set(KEYS[0], wanted[0])
        assert engine.backend.batch_exists(KEYS) == PAGES
        targets = [engine.pool.get_dummy_flat_data_page() for _ in KEYS]
        assert same(engine.backend.batch_get(KEYS, targets), wanted)
        assert torch.equal(engine.backend.get(KEYS[2], torch.zeros_like(wanted[2])), wanted[2])
        absent = hashlib.sha256(b"absent").hexdigest()
        assert engine.backend.get(absent, targets[0]) is None
        assert newer.backend.batch_exists(KEYS) == 0


def test_workers_that_differ_share_nothing(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    with Engine(sglang, agent.address, name) as engine:
        stored, _ = engine.fill(range(PAGES))
        assert all(engine.backend.batch_set_v1(KEYS, stored))
    others: list[dict[str, Any]] = [
        {"layout": "layer_first"},
        {"tp_size": 2},
        {"settings": {"revision": "2"}},
        {"settings": {"tenant": "other"}},
        {"model_name": "models/other"},
    ]
    for other in others:
        with Engine(sglang, agent.address, name, **other) as engine:
            assert engine.backend.batch_exists(KEYS) == 0, other


def test_only_engines_of_one_version_share_pages(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    """Versions of 0.5 differ in what the hash of a page is made of: adapters, salts."""
    with (
        Engine(sglang, agent.address, name) as engine,
        AdminClient(agent.admin_address) as admin,
    ):
        assert engine.backend.batch_exists(KEYS) == 0
        [info] = [each for each in admin.list_namespaces() if name in each.spec.name]
        assert info.spec.engine == f"sglang {version('sglang')}"


def test_another_sglang_is_refused_with_what_is_needed() -> None:
    script = (
        "import sys; sys.modules['sglang'] = None\n"
        "try: import kvtier.integrations.sglang\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "made for SGLang 0.5.23" in done.stdout


def test_an_agent_that_is_away_is_a_miss(
    sglang: SimpleNamespace, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        AgentProcess(tmp_path, {"tiers.host.capacity": "16MiB"}) as agent,
        Engine(sglang, agent.address, name) as engine,
    ):
        stored, wanted = engine.fill(range(PAGES))
        assert all(engine.backend.batch_set_v1(KEYS, stored))
        agent.kill()
        with caplog.at_level(logging.WARNING):
            assert engine.backend.batch_exists(KEYS) == 0
            assert engine.backend.batch_get_v1(KEYS, engine.empty(PAGES)) == [False] * PAGES
            assert engine.backend.batch_set_v1(KEYS, stored) == [False] * PAGES
            assert engine.backend.get(KEYS[0], engine.pool.get_dummy_flat_data_page()) is None
        assert len([each for each in caplog.records if "kvtier: nothing is" in each.message]) == 1
        agent.start()
        wait_until(lambda: all(engine.backend.batch_set_v1(KEYS, stored)), 10.0)
        got = engine.empty(PAGES)
        assert all(engine.backend.batch_get_v1(KEYS, got))
        assert same(engine.pages(got), wanted)


def test_wrong_settings_name_the_field(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    with pytest.raises(ValueError, match=r"extra-config\.kvtier\.adress is not a setting"):
        Engine(sglang, agent.address, name, settings={"adress": ""})
    with pytest.raises(ValueError, match=r"kvtier\.timeout_seconds is '1'; it must be a float"):
        Engine(sglang, agent.address, name, settings={"timeout_seconds": "1"})
    with pytest.raises(ValueError, match="tp_lcm_size"):
        Engine(sglang, agent.address, name, should_split_heads=True)


def test_models_with_several_pools_are_refused(
    sglang: SimpleNamespace, agent: AgentProcess, name: str
) -> None:
    with Engine(sglang, agent.address, name) as engine:
        engine.backend.register_mem_host_pool_v2(engine.pool, sglang.storage.PoolName.KV)
        with pytest.raises(ValueError, match="this one has mamba"):
            engine.backend.register_mem_host_pool_v2(engine.pool, sglang.storage.PoolName.MAMBA)
