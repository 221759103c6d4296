"""The section of events."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from kvtier.config.section import Count, Section


class EventsConfig(Section):
    """Changes of residency, for routers that watch them."""

    kept: Annotated[int, Strict(), Field(ge=1024, le=2**20)] = 65536
    """The last changes of each namespace that is watched: a watcher may be so far behind."""
    max_watchers: Count = 32
    """At one time, and so many namespaces."""
