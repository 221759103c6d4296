"""The GPU tier at work: its devices, who is on which, and what workers open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from kvtier.agent.sessions.attach import Operation, Reply
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.sessions.sessions import Attachment, Session, Sessions
from kvtier.agent.tiers.device import Device, DeviceOptions, Handle
from kvtier.agent.tiers.pinning import Pinning
from kvtier.core import attach as protocol
from kvtier.core.capacity import LEAST_DEVICE_BYTES
from kvtier.core.cause import Cause
from kvtier.devices import EMULATED
from kvtier.errors import AccessDeniedError
from kvtier.tiers.arena import SharedSlotTable
from kvtier.tiers.device import Accelerator, DeviceExtent, DeviceTier
from kvtier.tiers.emulated import EmulatedAccelerator
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_table import Extent

log = logging.getLogger(__name__)

OpenAccelerator = Callable[[str], Accelerator]


class Gpu:
    """Devices by number, from 1; there may be none. One that cannot be used is left out: `failures`
    say why.

    `open_accelerator` finds a device by name.
    """

    def __init__(
        self,
        wanted: Mapping[str, DeviceOptions],
        host: HostTier,
        open_accelerator: OpenAccelerator | None = None,
    ) -> None:
        self.devices: list[Device] = []
        self.failures: dict[str, str] = {}
        #: Why a device has less than was configured.
        self.shortages: dict[str, str] = {}
        self.pinning = Pinning()
        self._namespaces: dict[int, Namespace] = {}
        for name, options in wanted.items():
            try:
                accelerator = (open_accelerator or _open)(name)
                fitting = self._fitting(accelerator, options)
            except OSError as error:
                self.failures[name] = str(error)
                log.error("tiers.gpu: %s stays off: %s", name, error)
                continue
            number = len(self.devices) + 1
            self.devices.append(Device(accelerator, number, fitting, host, self.pinning))
        if self.devices:
            self._follow(host)

    def _fitting(self, accelerator: Accelerator, options: DeviceOptions) -> DeviceOptions:
        """No more than the device has now. Raises OSError if that is of no use."""
        wanted, available = options.capacity_bytes, accelerator.available_bytes()
        if available >= wanted:
            return options
        if available < max(LEAST_DEVICE_BYTES, accelerator.least_extent_bytes):
            accelerator.close()
            raise OSError(f"{available >> 20} MiB of its memory are free")
        shortage = f"{available >> 20} MiB were free at the start, of {wanted >> 20} configured"
        self.shortages[accelerator.name] = shortage
        log.warning("tiers.gpu: %s is smaller: %s", accelerator.name, shortage)
        return replace(options, capacity_bytes=available)

    def _follow(self, host: HostTier) -> None:
        """What leaves HOST leaves the devices; before HOST's first size class is made."""
        noted = host.on_forget

        def forgotten(size_class: SizeClass, row: int, cause: Cause, taker: int) -> None:
            if noted is not None:
                noted(size_class, row, cause, taker)
            namespace = self._namespaces.get(size_class.table.namespace_id)
            if namespace is not None:
                lane, block_hash = size_class.residency.describe(row)
                for device in self.devices:
                    device.forget(namespace, lane, block_hash, cause)

        host.on_forget = forgotten

    def watch(self, namespaces: Namespaces) -> None:
        """Before the first namespace is registered."""
        if not self.devices:
            return
        namespaces.on_added.append(lambda each: self._namespaces.update({each.namespace_id: each}))
        namespaces.on_dropped.append(self._forget)

    def _forget(self, namespace: Namespace) -> None:
        del self._namespaces[namespace.namespace_id]

    @property
    def tiers(self) -> list[DeviceTier]:
        return [device.slots for device in self.devices]

    def announce(self, on_retired: Callable[[Extent], None]) -> None:
        """Who is to tell workers of extents that are gone."""
        for device in self.devices:
            device.placement.on_retired = on_retired

    def device_of(self, session: Session) -> Device | None:
        """The one that a session's worker is on."""
        number = session.attachment.device
        return self.devices[number - 1] if number else None

    # What workers say on the attach socket.

    def operations(self, sessions: Sessions) -> dict[str, Operation]:
        """By name; none without a device."""
        if not self.devices:
            return {}
        return {
            "device": self._place,
            "device_extents": partial(self._give, sessions),
        }

    def _place(self, message: protocol.Message, attachment: Attachment, reply: Reply) -> None:
        """A worker is on a device: which of ours that is, 0 if none."""
        identity = protocol.text(message, "device")
        attachment.device = next(
            (each.number for each in self.devices if each.accelerator.identity == identity), 0
        )
        reply({"op": "device", "device": attachment.device}, [])

    def _give(
        self, sessions: Sessions, message: protocol.Message, attachment: Attachment, reply: Reply
    ) -> None:
        session = sessions.find(protocol.token(message, "session"))
        if session.attachment is not attachment:
            raise AccessDeniedError("attach message: the session belongs to another connection")
        wanted = protocol.numbers(message, "extents", protocol.MAX_DEVICE_EXTENTS_PER_REQUEST)
        device = self.device_of(session)
        if device is None:
            reply({"op": "device_extents", "extents": []}, [])
            return
        size_classes = session.namespace.devices[device.number - 1]
        extents = [
            extent
            for size_class in dict.fromkeys(size_classes)
            for extent in size_class.extents
            if extent.extent_id in wanted and isinstance(extent, DeviceExtent)
        ]
        device.hand_over(
            extents,
            attachment,
            lambda handles: reply(*_described(size_classes, handles)),
        )

    async def close(self) -> None:
        for device in self.devices:
            await device.close()


def _described(
    size_classes: Sequence[SizeClass], handles: Sequence[tuple[DeviceExtent, Handle]]
) -> tuple[protocol.Message, list[int]]:
    """The extents, each with its handle, without those that were given up meanwhile."""
    table = size_classes[0].table
    assert isinstance(table, SharedSlotTable)
    described, descriptors = [], [table.fd]
    for extent, handle in handles:
        # Its worker has been told that it is gone, or is about to be.
        if not any(extent in size_class.extents for size_class in size_classes):
            continue
        descriptors += handle.descriptors
        described.append(
            {
                "extent": extent.extent_id,
                "base": extent.base,
                "slots": extent.slots,
                "slot_bytes": extent.slot_bytes,
                "handle": handle.fields,
                **({"failure": handle.failure} if handle.failure else {}),
            }
        )
    return {"op": "device_extents", "extents": described}, descriptors


def _open(name: str) -> Accelerator:
    if name == EMULATED:
        return EmulatedAccelerator()
    if find_spec("torch") is None:
        raise OSError("it needs PyTorch: pip install 'kvtier[gpu]'")
    from kvtier.tiers.gpu import open_accelerator  # some seconds, and memory: only when it is used

    return open_accelerator(name)
