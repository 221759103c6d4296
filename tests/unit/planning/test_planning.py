"""KV caches of models against figures worked out by hand, and the sizes of tiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtier.errors import ConfigError
from kvtier.planning.hf_config import read_hf_config
from kvtier.planning.kv_shape import Layers, find_dtype, heads, latent
from kvtier.planning.models import MODELS, find_model
from kvtier.planning.sizing import Load, plan

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [
        ("gpt2-xl", 300 * 1024),
        ("llama-2-7b", 512 * 1024),
        ("llama-2-70b", 320 * 1024),
        ("llama-3-8b", 131_072),
        ("llama-3.1-405b", 516_096),
        ("falcon-7b", 8 * 1024),
        ("qwen2.5-7b", 56 * 1024),
        ("deepseek-v3", 70_272),
        ("deepseek-v2", 60 * 576 * 2),
    ],
)
def test_a_token_takes_what_is_published(name: str, size_bytes: int) -> None:
    assert MODELS[name].bytes_per_token == size_bytes


def test_kinds_of_attention_have_their_names() -> None:
    names = ("llama-2-7b", "llama-3-8b", "falcon-7b", "deepseek-v3", "gemma-3-27b")
    kinds = [MODELS[name].attention for name in names]
    assert kinds == ["MHA", "GQA", "MQA", "MLA", "GQA, sliding window"]


def test_windows_need_no_more_than_they_reach() -> None:
    shape = MODELS["gemma-3-27b"]  # 10 full layers, 52 of 1024 tokens
    token = 2 * 16 * 128 * 2
    assert shape.bytes_per_token == 62 * token
    assert shape.context_bytes(1000) == 62 * token * 1000
    assert shape.context_bytes(32_768) == (10 * 32_768 + 52 * 1024) * token


@pytest.mark.parametrize(
    "name",
    ["Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct", "LLAMA_3_8B", "x/llama-3-8b-hf"],
)
def test_models_have_several_spellings(name: str) -> None:
    assert find_model(name) is MODELS["llama-3-8b"]


def test_a_model_that_is_not_known_has_similar_ones() -> None:
    with pytest.raises(ConfigError, match=r"--model lama-3-8b: not known; similar: llama-3-8b"):
        find_model("lama-3-8b")


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    (
        "llama-3-8b",
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "hidden_size": 4096,
            "torch_dtype": "bfloat16",
        },
    ),
    (
        "llama-2-7b",
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_size": 4096,
            "torch_dtype": "float16",
        },
    ),
    ("gpt2-xl", {"n_layer": 48, "n_head": 25, "n_embd": 1600, "dtype": "float16"}),
    (
        "falcon-7b",
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "hidden_size": 4544,
            "multi_query": True,
        },
    ),
    (
        "deepseek-v3",
        {
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "torch_dtype": "bfloat16",
        },
    ),
    (
        "gemma-3-27b",
        {
            "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "gemma3_text",
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
                "sliding_window": 1024,
                "sliding_window_pattern": 6,
            },
        },
    ),
    (
        "gemma-2-9b",
        {
            "model_type": "gemma2",
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "sliding_window": 4096,
        },
    ),
    (
        "gpt-oss-20b",
        {
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
        },
    ),
    (
        "qwen2.5-7b",
        {
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "hidden_size": 3584,
            "sliding_window": 131072,
            "use_sliding_window": False,
            "max_window_layers": 28,
        },
    ),
    (
        "mistral-7b-v0.1",
        {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "hidden_size": 4096,
            "sliding_window": 4096,
        },
    ),
]


@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=[name for name, _ in CONFIGS])
def test_a_models_own_configuration_says_the_same(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_hf_config(tmp_path) == MODELS[name]
    assert read_hf_config(tmp_path / "config.json") == MODELS[name]


def test_layers_without_keys_and_values_do_not_count(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_hf_config(tmp_path).groups == (Layers(1, 256),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "num_hidden_layers is missing"),
        ('{"num_hidden_layers": "4"}', "num_hidden_layers is not a whole number"),
        ('{"num_hidden_layers": 4, "torch_dtype": "int3"}', "no dtype 'int3'; write one of"),
        (
            '{"num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 1,'
            ' "layer_types": ["mamba"]}',
            "no attention that keeps keys and values",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_hf_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/config.json: ")


def test_a_directory_without_configuration_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: No such file"):
        read_hf_config(tmp_path)


@pytest.mark.parametrize("name", ["bf16", "BF16", "bfloat16", "torch.bfloat16"])
def test_types_have_several_names(name: str) -> None:
    assert find_dtype(name) == "bfloat16"


def load(**changes: Any) -> Load:
    plain = {
        "context_tokens": 8192,
        "batch": 16,
        "sessions": 160,
        "reuse": 0.25,
        "shared": 0.0,
        "block_tokens": 16,
    }
    return Load(**{**plain, **changes})


def test_tiers_of_a_known_load() -> None:
    made = plan(MODELS["llama-3-8b"], load())
    assert made.block_bytes == made.slot_bytes == 2 << 20
    assert (made.context_bytes, made.batch_bytes) == (GIB, 16 * GIB)
    assert made.host_bytes == 58 * GIB  # 56 contexts and 2 %, whole GiB
    assert made.disk_bytes == 176 * GIB  # 160 contexts and 10 %
    assert (made.host_capacity, made.disk_capacity) == ("58GiB", "176GiB")


def test_what_is_common_to_all_is_kept_once() -> None:
    made = plan(MODELS["llama-3-8b"], load(shared=0.5, batch=1, sessions=100))
    assert made.disk_bytes == 56 * GIB  # (0.5 + 50) and 10 %
    assert made.host_bytes == 14 * GIB  # 0.5 + 26 / 2, and 2 %


def test_host_is_never_for_more_sessions_than_live() -> None:
    made = plan(MODELS["llama-3-8b"], load(reuse=1.0))
    assert made.host_bytes == 164 * GIB


def test_slots_are_whole_pages_of_each_group() -> None:
    made = plan(heads(4, 1, 72, window_tokens=8, window_layers=1), load())
    assert made.block_bytes == 4 * 2 * 72 * 2 * 16
    assert made.slot_bytes == (4 + 2) * 4096  # 13,824 and 4,608 bytes


def test_latent_attention_keeps_one_vector() -> None:
    assert latent(61, 576, "fp8").bytes_per_token == 61 * 576
