"""SGLang 0.5.23: a storage backend of HiCache, behind its host memory.

    python -m sglang.launch_server --model-path MODEL --enable-hierarchical-cache \\
        --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{
            "backend_name": "kvtier", "module_path": "kvtier.integrations.sglang",
            "class_name": "KvtierHiCache", "interface_v1": 1,
            "hicache_storage_pass_prefix_keys": true}'

`docs/integrations.md` has every setting.
"""

try:
    from kvtier.integrations.sglang.hicache import KvtierHiCache
except ImportError as error:
    raise ImportError(
        f"kvtier.integrations.sglang is made for SGLang 0.5.23, whose modules it needs: {error}"
    ) from error

__all__ = ["KvtierHiCache"]
