"""vLLM 0.32: blocks of its paged KV cache are kept by the agent, and loaded instead of computed.

    vllm serve MODEL --prefix-caching-hash-algo sha256_cbor --kv-transfer-config '{
        "kv_connector": "KvtierConnector",
        "kv_connector_module_path": "kvtier.integrations.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute"}'

`docs/integrations.md` has every setting.
"""

from kvtier.integrations.vllm.connector import KvtierConnector

__all__ = ["KvtierConnector"]
