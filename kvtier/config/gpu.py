"""The section of the tier on devices."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, field_validator

from kvtier.config.caching import CachingConfig, PolicyName
from kvtier.config.section import Section, Text
from kvtier.config.size import Size, at_least
from kvtier.core.capacity import LEAST_DEVICE_BYTES

#: As extents are numbered (see `kvtier.devices`).
_MOST_DEVICES: Final = 15
_DEVICE: Final = re.compile(r"cpu|[a-z]{2,16}:\d{1,3}")


def _is_device(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"{name!r} is no device; write cuda:0, xpu:1 and so on, or cpu")
    return name


class GpuDeviceConfig(Section):
    """The memory of one device."""

    device: Annotated[Text, AfterValidator(_is_device)]
    """As torch names it; `cpu` emulates one in shared memory."""
    capacity: Annotated[Size, at_least(LEAST_DEVICE_BYTES)]


class GpuConfig(CachingConfig):
    """Copies of blocks of HOST in the memory of devices."""

    policy: PolicyName = "hd"

    devices: tuple[GpuDeviceConfig, ...] = ()
    """Empty: there is no GPU tier."""

    @field_validator("devices")
    @classmethod
    def _devices_differ(cls, devices: tuple[GpuDeviceConfig, ...]) -> tuple[GpuDeviceConfig, ...]:
        names = [each.device for each in devices]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is given twice")
        if len(devices) > _MOST_DEVICES:
            raise ValueError(f"{len(devices)} devices; at most {_MOST_DEVICES}")
        return devices
