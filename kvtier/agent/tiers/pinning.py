"""Extents of HOST as pinned memory, so that a device reads them at full speed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from kvtier.tiers.arena import HostExtent
from kvtier.tiers.device import Accelerator

log = logging.getLogger(__name__)


class Pinning:
    """Registers each extent once, for all devices, when it is first copied from. Thread-safe.

    What cannot be registered is copied from all the same, slower.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pinned_bytes = 0
        self.failure = ""

    def pin(self, accelerator: Accelerator, extents: Iterable[HostExtent]) -> None:
        """By a mover that has blocks of these extents in use, so that none is discarded meanwhile.

        One that is still being populated is left for later: registering allocates its pages.
        """
        with self._lock:
            for extent in extents:
                if extent.unpin is None and extent.populated_slots == extent.slots:
                    self._pin(accelerator, extent)

    def _pin(self, accelerator: Accelerator, extent: HostExtent) -> None:
        try:
            unpin = accelerator.pin(extent.cells)
        except OSError as error:
            extent.unpin = lambda: None
            if not self.failure:
                log.warning(
                    "%s: HOST's memory cannot be pinned, so copies to the device are slower: %s "
                    "(does the container's memory lock limit, ulimit -l, allow it?)",
                    accelerator.name,
                    error,
                )
            self.failure = str(error)
            return
        self.pinned_bytes += extent.size_bytes

        def end() -> None:
            unpin()
            with self._lock:
                self.pinned_bytes -= extent.size_bytes

        extent.unpin = end
