"""What makes the KV pages of two SGLang workers interchangeable."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

from kvtier.core.namespace import NamespaceSpec
from kvtier.integrations.model_files import files_digest, namespace_name
from kvtier.integrations.sglang.settings import Settings


def shard_of(config: HiCacheStorageConfig) -> tuple[int, int]:
    """A worker's shard, and how many there are.

    Ranks of tensor parallelism hold the same bytes where there is one latent vector for all heads
    (MLA), unless they divide the context between them (DCP).
    """
    heads, head = (
        (config.dcp_size, config.dcp_rank)
        if config.is_mla_model
        else (config.tp_size, config.tp_rank)
    )
    count = config.pp_size * heads * config.attn_cp_size
    return (config.pp_rank * heads + head) * config.attn_cp_size + config.attn_cp_rank, count


def namespace_spec(
    config: HiCacheStorageConfig,
    pool: Any,
    settings: Settings,
    *,
    order: str,
    page_bytes: int,
) -> NamespaceSpec:
    """A namespace for pages of this pool, whose bytes are in this order.

    Pools differ in what they say of themselves; what one does not have is left out.
    """
    model = config.model_name or ""
    directory = Path(model)
    revision = settings.revision or (files_digest(directory) if directory.is_dir() else "")
    parallel = {
        "tp": config.tp_size,
        "pp": config.pp_size,
        "cp": config.attn_cp_size,
        "dcp": config.dcp_size,
    }
    return NamespaceSpec(
        name=settings.namespace or namespace_name(model, "sglang"),
        tenant=settings.tenant,
        model="" if directory.is_dir() else model[-512:],
        revision=revision,
        dtype=str(pool.dtype).removeprefix("torch."),
        block_tokens=pool.logical_page_size,
        block_bytes=(page_bytes,),
        layers=int(getattr(pool, "layer_num", 0)),
        kv_heads=int(getattr(pool, "head_num", 0)),
        head_dim=int(getattr(pool, "head_dim", 0)),
        layout=f"{type(pool).__name__} {pool.layout}, {order}",
        shards=shard_of(config)[1],
        hash_algorithm="sglang-sha256",
        # All of it: pools, and what a page's hash is made of, have changed between versions of 0.5.
        engine=f"sglang {version('sglang')}",
        extra={
            "format": str(pool.storage_format_tag or ""),
            "parallel": ",".join(f"{name}{size}" for name, size in parallel.items()),
            "token_bytes": str(pool.get_size_per_token()),
        },
    )
