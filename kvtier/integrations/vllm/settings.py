"""The settings of the connector: `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvtier.integrations.engine_settings import engine_settings


@dataclass(frozen=True)
class Settings:
    """Raises ValueError for a setting that does not exist or has another type.

    `address` is that of the agent's worker.sock, empty for the default one. `namespace` is the
    namespace's name, empty for one made from the model's; `revision` names the weights, empty for
    what vLLM knows or a digest of the files. A lookup that takes longer than
    `lookup_timeout_seconds` counts as a miss, one exchange of a load or store with the agent may
    take `transfer_timeout_seconds`. What was found is kept for `hold_seconds` until it is loaded.
    Less than `min_load_tokens` are computed rather than loaded.
    """

    address: str = ""
    tenant: str = "default"
    namespace: str = ""
    revision: str = ""
    lookup_timeout_seconds: float = 0.25
    transfer_timeout_seconds: float = 1.0
    hold_seconds: float = 5.0
    min_load_tokens: int = 64

    @classmethod
    def from_extra_config(cls, extra: Mapping[str, Any]) -> Settings:
        return engine_settings(cls, extra, "kv_connector_extra_config")
