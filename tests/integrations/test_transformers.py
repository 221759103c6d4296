"""Hugging Face models with a real agent: restored prefixes, and nothing but those."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    StaticCache,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.client.namespace import Place
from kvtier.core.block import Tier
from kvtier.hashing import block_hashes
from kvtier.integrations.transformers import KvtierCache, PrefixCache
from kvtier.integrations.transformers.kv_group import KvGroup
from kvtier.integrations.transformers.prompts import Prompt
from kvtier.integrations.transformers.reach import Row, longest
from kvtier.testing import AgentProcess
from kvtier.testing.slow_agent import SlowAgentProcess

BLOCK_TOKENS = 16
#: One token more than three blocks: what a window keeps is three whole blocks.
WINDOW_TOKENS = 3 * BLOCK_TOKENS + 1
NEW_TOKENS = 12
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    # Wide, so that every token that was read bears on what is said.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama(seed: int = 1, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHAPE | settings))
    model.eval()
    return model


def gemma(seed: int = 1) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=WINDOW_TOKENS,
        **SHAPE,
    )
    model: PreTrainedModel = Gemma3ForCausalLM(config)
    model.eval()
    return model


def mistral(seed: int = 1) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = MistralConfig(num_hidden_layers=2, sliding_window=WINDOW_TOKENS, **SHAPE)
    model: PreTrainedModel = MistralForCausalLM(config)
    model.eval()
    return model


MODELS = {"full attention": llama, "hybrid": gemma, "sliding windows": mistral}


@pytest.fixture(scope="module", autouse=True)
def _few_threads() -> Iterator[None]:
    """Progress bars keep one; torch's would wait for each other over these small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    disable_progress_bar()
    yield
    enable_progress_bar()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[Client]:
    with Client(agent.address, timeout_seconds=10.0) as connected:
        yield connected


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    return f"test-{abs(hash(request.node.name)):x}"


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 260, (1, count), generator=torch.Generator().manual_seed(seed))


def generate(model: PreTrainedModel, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    output: torch.Tensor = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return output


def prefill(model: PreTrainedModel, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """The logits after the last token; `cache` has the beginning of `ids` and gets the rest."""
    with torch.no_grad():
        rest = ids[:, cache.get_seq_length() :]
        logits: torch.Tensor = model(rest, past_key_values=cache).logits[0, -1]
    return logits


def reference(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What the model says without kvtier."""
    return generate(model, ids, DynamicCache(config=model.config))


def prefix_cache(client: Client, model: PreTrainedModel, name: str, **options: Any) -> PrefixCache:
    return PrefixCache(client, model, name=name, **{"block_tokens": BLOCK_TOKENS} | options)


def stored(prefixes: PrefixCache, model: PreTrainedModel, ids: torch.Tensor) -> KvtierCache:
    """Computes `ids` and saves them; what was restored before."""
    restored = prefixes.restore(ids)
    prefill(model, ids, restored)
    restored.save(ids)
    return restored


def test_goes_on_from_a_restored_prefix(client: Client, model: PreTrainedModel, name: str) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    assert stored(prefixes, model, ids).restored_tokens == 0
    restored = prefixes.restore(ids)
    assert restored.restored_tokens == 144
    assert restored.get_seq_length() == 144
    assert restored.restored_bytes > 0
    assert torch.equal(generate(model, ids, restored), reference(model, ids))


def test_logits_are_close(client: Client, model: PreTrainedModel, name: str) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    stored(prefixes, model, ids)
    cold = prefill(model, ids, DynamicCache(config=model.config))
    warm = prefill(model, ids, prefixes.restore(ids))
    torch.testing.assert_close(warm, cold, rtol=1e-4, atol=1e-4)


def test_restores_the_very_bytes(client: Client, model: PreTrainedModel, name: str) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(145)
    computed = prefixes.restore(ids)
    prefill(model, ids[:, :144], computed)
    prefixes.save(ids, computed)
    restored: list[Any] = prefixes.restore(ids).layers
    layers: list[Any] = computed.layers
    for mine, theirs in zip(restored, layers, strict=True):
        kept = mine.keys.shape[2]
        assert kept == (WINDOW_TOKENS - 1 if mine.is_sliding else 144)
        assert torch.equal(mine.keys, theirs.keys[:, :, -kept:])
        assert torch.equal(mine.values, theirs.values[:, :, -kept:])
        assert mine.get_seq_length() == 144


def test_longer_conversation_shares_the_prefix(
    client: Client, model: PreTrainedModel, name: str
) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(100)
    restored = prefixes.restore(ids)
    output = generate(model, ids, restored)
    restored.save(output)
    longer = torch.cat([output, tokens(60, seed=1)], dim=1)
    restored = prefixes.restore(longer)
    assert restored.restored_tokens == (output.shape[1] - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    output = generate(model, longer, restored)
    assert torch.equal(output, reference(model, longer))
    assert restored.save(output).blocks > 0
    assert (
        prefixes.restore(output).restored_tokens
        == (output.shape[1] - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    )


@pytest.mark.parametrize("length", [17, 48, 49, 65, 100, 144])
def test_every_beginning_is_restorable(
    client: Client, model: PreTrainedModel, name: str, length: int
) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    stored(prefixes, model, ids)
    beginning = torch.cat([ids[:, :length], tokens(20, seed=2)], dim=1)
    restored = prefixes.restore(beginning)
    assert restored.restored_tokens == length // BLOCK_TOKENS * BLOCK_TOKENS
    assert torch.equal(generate(model, beginning, restored), reference(model, beginning))


def test_a_plain_cache_can_be_saved(client: Client, model: PreTrainedModel, name: str) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    plain = DynamicCache()
    prefill(model, ids, plain)
    prefixes.save(ids, plain)
    restored = prefixes.restore(ids)
    assert restored.restored_tokens == 144
    assert torch.equal(generate(model, ids, restored), reference(model, ids))


def test_of_a_windowed_cache_the_end_is_restorable(client: Client, name: str) -> None:
    model = gemma()
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    cache = DynamicCache(config=model.config)
    prefill(model, ids[:, :144], cache)
    assert prefixes.save(ids, cache).blocks == 9 + 3
    restored = prefixes.restore(ids)
    assert restored.restored_tokens == 144
    assert torch.equal(generate(model, ids, restored), reference(model, ids))
    assert prefixes.restore(ids[:, :144]).restored_tokens == 0


def test_a_windowed_cache_cut_amid_a_block_restores_nothing(client: Client, name: str) -> None:
    model = gemma()
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    cache = DynamicCache(config=model.config)
    prefill(model, ids, cache)
    assert prefixes.save(ids, cache).blocks == 9 + 2
    assert prefixes.restore(ids).restored_tokens == 0


def test_saves_only_what_is_not_cached(client: Client, model: PreTrainedModel, name: str) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    restored = prefixes.restore(ids)
    prefill(model, ids, restored)
    saved = restored.save(ids)
    assert saved.blocks == 9 * len(prefixes.groups)
    assert saved.size_bytes == sum(9 * group.block_bytes for group in prefixes.groups)
    assert restored.save(ids).blocks == 0


def test_save_counts_the_tokens_that_both_have(client: Client, name: str) -> None:
    model = llama()
    prefixes, ids = prefix_cache(client, model, name), tokens(100)
    cache = DynamicCache()
    assert prefixes.save(ids, cache).blocks == 0
    prefill(model, ids[:, :40], cache)
    assert prefixes.save(ids, cache).blocks == 2
    prefill(model, ids, cache)
    assert prefixes.save(ids[:, :70], cache).blocks == 2


def test_one_token_is_left_to_compute(client: Client, name: str) -> None:
    model = llama()
    prefixes, ids = prefix_cache(client, model, name), tokens(64)
    stored(prefixes, model, ids)
    assert prefixes.restore(ids).restored_tokens == 63
    assert prefixes.restore(ids[:, :1]).restored_tokens == 0


def test_an_evicted_block_cuts_the_prefix(
    agent: AgentProcess, client: Client, model: PreTrainedModel, name: str
) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    stored(prefixes, model, ids)
    hashes = block_hashes(ids[0].numpy(), BLOCK_TOKENS)
    with AdminClient(agent.admin_address) as admin:
        admin.evict_blocks(f"default/{name}", hashes[5:6])
    restored = prefixes.restore(ids)
    assert restored.restored_tokens == 5 * BLOCK_TOKENS
    assert torch.equal(generate(model, ids, restored), reference(model, ids))


def test_other_bytes_would_be_noticed(client: Client, model: PreTrainedModel, name: str) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(150)
    honest = prefix_cache(client, model, f"{name}-honest")
    stored(honest, model, ids)
    hashes = block_hashes(ids[0].numpy(), BLOCK_TOKENS)
    source, target = client.namespace(honest.spec), client.namespace(prefixes.spec)
    for index, group in enumerate(prefixes.groups):
        blocks = np.empty((9, group.block_bytes), np.uint8)
        place = Place(index)
        source.load_into(hashes, blocks, place=place)
        # The signs of a few values in the last of the blocks.
        blocks.view(np.float32)[8, :64] *= -1
        target.store(hashes, blocks, place=place)
    restored = prefixes.restore(ids)
    assert restored.restored_tokens == 144
    warm = prefill(model, ids, restored)
    cold = prefill(model, ids, DynamicCache(config=model.config))
    assert not torch.allclose(warm, cold, rtol=1e-4, atol=1e-4)


def test_what_bears_on_the_bytes_is_not_shared(client: Client, name: str) -> None:
    model, ids = llama(), tokens(150)
    stored(prefix_cache(client, model, name), model, ids)
    assert prefix_cache(client, llama(), name).restore(ids).restored_tokens == 144
    assert prefix_cache(client, llama(seed=2), name).restore(ids).restored_tokens == 0
    assert prefix_cache(client, llama().bfloat16(), name).restore(ids).restored_tokens == 0
    assert prefix_cache(client, model, name, block_tokens=8).restore(ids).restored_tokens == 0
    assert prefix_cache(client, model, name, tenant="other").restore(ids).restored_tokens == 0
    assert prefix_cache(client, model, name, revision="a1b2").restore(ids).restored_tokens == 0
    assert prefix_cache(client, llama(rms_norm_eps=1e-3), name).restore(ids).restored_tokens == 0
    assert prefix_cache(client, model, name).restore(ids, extra=b"adapter").restored_tokens == 0


def test_weights_from_another_directory_are_the_same(
    client: Client, name: str, tmp_path: Path
) -> None:
    model, ids = llama(), tokens(150)
    stored(prefix_cache(client, model, name), model, ids)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert prefix_cache(client, loaded.eval(), name).restore(ids).restored_tokens == 144


def test_bfloat16(client: Client, name: str) -> None:
    model, ids = gemma().bfloat16(), tokens(150)
    prefixes = prefix_cache(client, model, name)
    stored(prefixes, model, ids)
    restored = prefixes.restore(ids)
    layers: list[Any] = restored.layers
    assert restored.restored_tokens == 144
    assert {layer.keys.dtype for layer in layers} == {torch.bfloat16}
    assert generate(model, ids, restored).shape == (1, 150 + NEW_TOKENS)


def test_without_an_agent_the_model_computes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, ids = llama(), tokens(100)
    with Client(f"unix:{tmp_path / 'worker.sock'}", timeout_seconds=0.2) as client:
        prefixes = prefix_cache(client, model, "absent")
        with caplog.at_level(logging.WARNING, "kvtier.integrations"):
            for _ in range(2):
                restored = prefixes.restore(ids)
                assert restored.restored_tokens == 0
                assert torch.equal(generate(model, ids, restored), reference(model, ids))
                assert restored.save(ids).blocks == 0
    logged = [each for each in caplog.records if each.name.startswith("kvtier.integrations")]
    assert [each.levelname for each in logged] == ["WARNING"]


def test_an_agent_that_dies_costs_nothing_but_time(tmp_path: Path) -> None:
    model, ids = gemma(), tokens(150)
    with AgentProcess(tmp_path) as agent, Client(agent.address) as client:
        prefixes = prefix_cache(client, model, "dying")
        stored(prefixes, model, ids)
        agent.kill()
        restored = prefixes.restore(ids)
        assert restored.restored_tokens == 0
        assert torch.equal(generate(model, ids, restored), reference(model, ids))
        assert restored.save(ids).blocks == 0


def test_a_full_agent_stores_what_fits(tmp_path: Path) -> None:
    model, ids = llama(), tokens(2000)
    settings = {"tiers.host.capacity": "1MiB"}
    with AgentProcess(tmp_path, settings) as agent, Client(agent.address) as client:
        prefixes = prefix_cache(client, model, "small")
        stored(prefixes, model, ids)
        restored = prefixes.restore(ids)
        assert restored.restored_tokens < 2000
        assert torch.equal(generate(model, ids, restored), reference(model, ids))


def _batch(prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left, and their mask."""
    width = max(each.shape[1] for each in prompts)
    rows = [torch.nn.functional.pad(each, (width - each.shape[1], 0)) for each in prompts]
    masks = [
        torch.nn.functional.pad(torch.ones_like(each), (width - each.shape[1], 0))
        for each in prompts
    ]
    return torch.cat(rows), torch.cat(masks)


def _generate_batch(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, cache: Any
) -> torch.Tensor:
    output: torch.Tensor = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        past_key_values=cache,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return output


def test_a_batch_goes_on_from_a_restored_prefix(
    client: Client, model: PreTrainedModel, name: str
) -> None:
    """Rows of other lengths, what one of them has from a call of its own, and all in a batch."""
    prefixes = prefix_cache(client, model, name)
    prompts = [tokens(150), tokens(150, seed=3)[:, :90], tokens(150, seed=4)[:, :127]]
    ids, mask = _batch(prompts)
    plain = _generate_batch(model, ids, mask, DynamicCache(config=model.config))
    first = prefixes.restore(ids, mask)
    assert first.restored_tokens == 0
    assert torch.equal(_generate_batch(model, ids, mask, first), plain)
    assert first.save(plain).blocks > 0
    for prompt in prompts:  # what a batch has stored is that of each prompt
        alone = prefixes.restore(prompt)
        assert alone.restored_tokens == (prompt.shape[1] - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        assert torch.equal(generate(model, prompt, alone), reference(model, prompt))
    again = prefixes.restore(ids, mask)
    assert again.restored_tokens == 135  # the third row's 112 tokens, behind 23 of padding
    assert again.get_seq_length() == again.restored_tokens
    assert torch.equal(_generate_batch(model, ids, mask, again), plain)
    assert again.save(plain).blocks == 0


def test_a_batch_of_one_prompt_stores_it_once(
    client: Client, model: PreTrainedModel, name: str
) -> None:
    prefixes, ids = prefix_cache(client, model, name), tokens(100).repeat(3, 1)
    cache = prefixes.restore(ids)
    prefill(model, ids, cache)
    assert cache.save(ids).blocks == 6 * len(prefixes.groups)
    restored = prefixes.restore(ids)
    assert restored.restored_tokens == 96
    assert torch.equal(
        _generate_batch(model, ids, torch.ones_like(ids), restored),
        reference(model, ids[:1]).repeat(3, 1),
    )


def test_bad_arguments_are_named(client: Client, name: str) -> None:
    model = llama()
    prefixes = prefix_cache(client, model, name)
    with pytest.raises(ValueError, match=r"input_ids has shape \(0, 8\)"):
        prefixes.restore(torch.zeros((0, 8), dtype=torch.long))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 7\)"):
        prefixes.restore(tokens(8), torch.ones((1, 7)))
    for mask in ([[1, 1, 0]], [[0, 1, 0]], [[0, 0, 0]]):
        with pytest.raises(ValueError, match="attention_mask: rows may be padded on the left only"):
            prefixes.restore(tokens(3), torch.tensor(mask))
    with pytest.raises(ValueError, match="input_ids has 2 rows; the cache has 1"):
        prefixes.restore(tokens(8)).save(tokens(8).repeat(2, 1))
    with pytest.raises(ValueError, match="input_ids has shape"):
        prefixes.save(torch.zeros(8, dtype=torch.long), DynamicCache())
    batch = DynamicCache()
    prefill(model, tokens(20).repeat(2, 1), batch)
    with pytest.raises(ValueError, match=r"cache has torch\.float32 of"):
        prefixes.save(tokens(20), batch)
    static: Any = StaticCache(config=model.config, max_cache_len=64)
    prefill(model, tokens(20), static)
    with pytest.raises(ValueError, match="cache keeps a StaticLayer"):
        prefixes.save(tokens(20), static)
    with pytest.raises(ValueError, match="block_tokens is 0"):
        prefix_cache(client, model, name, block_tokens=0)


def test_keys_that_depend_on_the_length_are_refused(client: Client, name: str) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ValueError, match="rope_type dynamic"):
        prefix_cache(client, llama(rope_parameters=rope), name)


def test_a_prefix_has_what_its_end_reaches() -> None:
    everything = [1] * 9
    tail = [0, 0, 0, 1, 1, 1, 0, 1, 1]
    both = (0, WINDOW_TOKENS)
    assert longest([_row(both, everything, everything)], 149) == 144
    assert longest([_row(both, everything, everything)], 143) == 143  # in the middle of a block
    assert longest([_row(both, everything, tail)], 149) == 96
    assert longest([_row((0,), tail)], 149) == 0
    assert longest([_row((WINDOW_TOKENS,), tail)], 80) == 0
    # One token more, and the window begins in a block earlier.
    assert longest([_row((WINDOW_TOKENS + 1,), tail)], 149) == 0


def test_a_prefix_of_a_batch_is_one_of_all_its_rows() -> None:
    long, short = _row((0,), [1] * 9), _row((0,), [1, 1], padding=100)
    assert longest([long, short], 149) == 132
    assert longest([long, _row((0,), [0, 0], padding=100)], 149) == 100
    assert longest([_row((0,), [0] * 9), short], 149) == 0


def _row(windows: tuple[int, ...], *present: list[int], padding: int = 0) -> Row:
    """A prompt of 150 positions."""
    prompt = Prompt(np.zeros(150 - padding, np.int64), padding)
    row = Row(prompt, [b""] * len(present[0]), [_kv_group(each) for each in windows])
    row.present = [np.array(each, np.bool_) for each in present]
    return row


def _kv_group(window_tokens: int) -> KvGroup:
    device = torch.device("cpu")
    return KvGroup((0,), (device,), window_tokens, 2, 16, torch.float32, BLOCK_TOKENS)


def test_what_is_computed_sooner_is_not_restored(tmp_path: Path) -> None:
    """With a model of 100 tokens a second, from a disk that takes a second for each read."""
    model, ids = llama(), tokens(97)
    disk = {"tiers.disk.paths": tmp_path, "tiers.disk.capacity": "64MiB"}
    with (
        SlowAgentProcess(settings=disk) as agent,
        Client(agent.address, timeout_seconds=10.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        slow, fast = (
            PrefixCache(client, model, name="x", block_tokens=16, tokens_per_second=speed)
            for speed in (100.0, 0.0)
        )
        cache = slow.restore(ids)
        with torch.no_grad():
            model(ids, past_key_values=cache)
        slow.save(ids, cache)
        admin.flush()
        admin.evict_blocks(slow.spec.label, tiers=[Tier.HOST])
        agent.slow_down(latency_seconds=1.0)
        restored = slow.restore(ids)
        assert restored.restored_tokens == 0
        assert restored.restored_seconds < 0.2
        restored = fast.restore(ids)  # it waits
        assert restored.restored_tokens == 96
        assert slow.restore(ids).restored_tokens == 96  # they are in HOST now
        with pytest.raises(ValueError, match="tokens_per_second is -1"):
            PrefixCache(client, model, name="x", tokens_per_second=-1.0)


@pytest.mark.parametrize(
    ("stand_in", "said"),
    [
        ("None", "pip install 'kvtier[transformers]'"),
        (
            "types.SimpleNamespace(__version__='4.57.1', DynamicCache=object)",
            "needs Transformers 5.14 or newer, and this is 4.57.1",
        ),
    ],
)
def test_another_transformers_is_refused_with_what_is_needed(stand_in: str, said: str) -> None:
    script = (
        f"import sys, types; sys.modules['transformers'] = {stand_in}\n"
        "try: import kvtier.integrations.transformers\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said in done.stdout
