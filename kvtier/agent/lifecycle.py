"""Whether an agent takes new work."""

from __future__ import annotations

from kvtier.errors import AgentUnavailableError


class Lifecycle:
    """Serving, or drained: then workers compute, as if there were no agent."""

    def __init__(self) -> None:
        self.is_draining = False

    def require_serving(self) -> None:
        """Raises AgentUnavailableError while the agent is drained."""
        if self.is_draining:
            raise AgentUnavailableError("the agent is draining: it takes no new work")
