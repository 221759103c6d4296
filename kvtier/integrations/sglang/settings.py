"""The settings of the backend: `kvtier` in SGLang's `--hicache-storage-backend-extra-config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """`address` is that of the agent's worker.sock, empty for the default one. `namespace` is the
    namespace's name, empty for one made from the model's; `revision` names the weights, empty for a
    digest of the files of a model in a directory. Each exchange with the agent may take
    `timeout_seconds`.
    """

    address: str = ""
    tenant: str = "default"
    namespace: str = ""
    revision: str = ""
    timeout_seconds: float = 2.0
