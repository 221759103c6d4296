"""What makes the KV blocks of two vLLM workers interchangeable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.config import VllmConfig
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import KVCacheConfig

from kvtier.integrations.model_files import files_digest, namespace_name
from kvtier.integrations.vllm.groups import Group
from kvtier.integrations.vllm.plan import WorkerLayout
from kvtier.integrations.vllm.settings import Settings

#: Settings that say where a model comes from or how it is used.
_INCIDENTAL = frozenset({"_name_or_path", "architectures", "transformers_version", "use_cache"})


def shard_count(config: VllmConfig, kv_cache: KVCacheConfig) -> int:
    """Workers whose blocks differ: those of one block make it up together."""
    parallel = config.parallel_config
    world = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    return int(world // kv_cache.kv_tp_replicas)


def shard_of(config: VllmConfig, kv_cache: KVCacheConfig, rank: int) -> tuple[int, bool]:
    """A worker's shard, and whether it is the one that stores it.

    Consecutive ranks hold the same bytes where a model has fewer KV heads than ranks, or one latent
    vector for all heads.
    """
    replicas = kv_cache.kv_tp_replicas
    return rank // replicas, rank % replicas == 0


def namespace_fields(
    config: VllmConfig,
    kv_cache: KVCacheConfig,
    groups: Sequence[Group],
    layouts: Sequence[WorkerLayout],
    settings: Settings,
) -> dict[str, Any]:
    """The fields of a NamespaceSpec, from the configuration and what the workers say.

    Pipeline stages may have unequally many layers: a block has the bytes of the largest stage.
    """
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    extra = {
        "attention_config": _digest(_settings_of(model.hf_config)),
        "hash_tokens": str(kv_cache.hash_block_size),
        "hash_seed": hashlib.sha256(bytes(kv_cache_utils.NONE_HASH)).hexdigest()[:16],
        "kv_dtype": str(cache.cache_dtype),
        "parallel": f"tp{parallel.tensor_parallel_size},pp{parallel.pipeline_parallel_size}",
        "quantization": str(model.quantization or ""),
        **layouts[0].extra,
    }
    if _is_length_dependent(model.hf_config):
        extra["max_model_len"] = str(model.max_model_len)
    for group in groups:
        kind = f"window of {group.window_tokens}" if group.window_tokens else "full attention"
        names = kv_cache.kv_cache_groups[group.index].layer_names
        extra[f"group.{group.number}"] = (
            f"{kind}, blocks of {group.block_tokens}, {len(names)} layers {_digest(names)}"
        )
    return {
        "name": settings.namespace or namespace_name(str(model.model), "vllm"),
        "tenant": settings.tenant,
        "model": str(model.model)[-512:] if not Path(model.model).is_dir() else "",
        "revision": settings.revision or _revision(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "block_tokens": groups[0].block_tokens,
        "block_bytes": tuple(map(max, zip(*(each.block_bytes for each in layouts), strict=True))),
        "layers": int(model.get_total_num_hidden_layers()),
        "kv_heads": int(model.get_total_num_kv_heads()),
        "head_dim": int(model.get_head_size()),
        "layout": layouts[0].layout,
        "shards": shard_count(config, kv_cache),
        "hash_algorithm": f"vllm-{cache.prefix_caching_hash_algo}",
        "engine": f"vllm {'.'.join(vllm.__version__.split('.')[:2])}",
        "extra": extra,
    }


def worker_layout(
    config: VllmConfig, block_bytes: Sequence[int], caches: Mapping[str, torch.Tensor]
) -> WorkerLayout:
    """What its bytes depend on: shape and type of its tensors, backend, instruction set."""
    layers = config.compilation_config.static_forward_context
    shapes, backends, sets = set(), set(), set()
    for name, cache in caches.items():
        shapes.add(f"{tuple(cache.shape[1:])} {cache.dtype}".replace("torch.", ""))
        layer = layers.get(name)
        backend = getattr(layer, "attn_backend", None)
        if backend is not None:
            backends.add(str(backend.get_name()))
        sets.add(str(getattr(layer, "isa", "")))
    device = next(iter(caches.values())).device.type
    extra = {"attention": ",".join(sorted(backends)), "device": device}
    if device == "cpu":  # keys are packed for the instructions that read them
        extra["instructions"] = (
            f"{torch.backends.cpu.get_cpu_capability()} {','.join(sorted(sets))}"
        )
    order = str(getattr(config.cache_config, "kv_cache_layout", None) or "")
    return WorkerLayout(tuple(block_bytes), f"{order} {'; '.join(sorted(shapes))}".strip(), extra)


def _revision(model: Any) -> str:
    """The commit of a downloaded model; a digest of the files of one in a directory."""
    directory = Path(model.model)
    if directory.is_dir():
        return files_digest(directory)
    commit = getattr(model.hf_config, "_commit_hash", None)
    return str(commit or model.revision or "")


def _settings_of(config: Any) -> dict[str, Any]:
    settings = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in settings.items() if key not in _INCIDENTAL}


def _is_length_dependent(config: Any) -> bool:
    """Whether positions are encoded differently for another maximum length."""
    return bool(re.search(r'"(dynamic|longrope)"', json.dumps(_settings_of(config))))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
