"""Doubles and tools for testing against kvtier; users may import them too."""

from kvtier.testing.agent_process import AgentProcess
from kvtier.testing.clock import ManualClock
from kvtier.testing.faulty_io import Fault, FaultyIO
from kvtier.testing.late_accelerator import LateAccelerator
from kvtier.testing.payload import is_payload_for, payload_for

__all__ = [
    "AgentProcess",
    "Fault",
    "FaultyIO",
    "LateAccelerator",
    "ManualClock",
    "is_payload_for",
    "payload_for",
]
