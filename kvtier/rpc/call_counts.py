"""How calls ended."""

from __future__ import annotations

from collections import Counter

from google.protobuf.descriptor import MethodDescriptor

from kvtier.core.status import Code

OK = "OK"


class CallCounts(Counter[tuple[str, str]]):
    """Calls by method and status, since the agent's start; without those that were cancelled."""

    def succeeded(self, method: MethodDescriptor) -> None:
        self[method.name, OK] += 1

    def failed(self, method: MethodDescriptor, code: Code) -> None:
        self[method.name, code.name] += 1
