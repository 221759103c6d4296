"""Memory, descriptors, priority: what there is, against what the configuration wants."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from kvtier import memory, scheduling
from kvtier.config import AgentConfig, format_size
from kvtier.daemon.process import DESCRIPTORS, FEWEST_DESCRIPTORS
from kvtier.daemon.sizing import host_capacity_bytes
from kvtier.doctor.finding import Finding, ok, problem, warning

#: Beside HOST: the interpreter, metadata, buffers.
_OWN_BYTES = 512 << 20


def limit_findings(
    config: AgentConfig, allocated_bytes: int, has_accelerator: bool, pid: int | None = None
) -> Iterator[Finding]:
    """Of a running agent, of which HOST has so much already; else of whoever asks."""
    yield _descriptors(pid)
    yield _memlock(config, has_accelerator, pid)
    yield _nice(pid)
    yield from _memory(config, allocated_bytes, pid)


def _limit(pid: int | None, which: int) -> tuple[int, int]:
    """Soft and hard; those of this process where another's may not be seen."""
    try:
        return resource.prlimit(pid or 0, which)
    except OSError:
        return resource.getrlimit(which)


def _descriptors(pid: int | None) -> Finding:
    _, hard = _limit(pid, resource.RLIMIT_NOFILE)
    said = f"at most {_said(hard)} descriptors"
    if hard != resource.RLIM_INFINITY and hard < FEWEST_DESCRIPTORS:
        return problem(
            "RLIMIT_NOFILE",
            f"{said}; the agent does not start with less than {FEWEST_DESCRIPTORS:,}",
            "LimitNOFILE= of its unit, --ulimit nofile of its container, or `ulimit -Hn`",
        )
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        return warning(
            "RLIMIT_NOFILE",
            f"{said}; a large HOST and many workers take up to {DESCRIPTORS:,}",
            "LimitNOFILE= of its unit, --ulimit nofile of its container, or `ulimit -Hn`",
        )
    return ok("RLIMIT_NOFILE", said)


def _memlock(config: AgentConfig, has_accelerator: bool, pid: int | None) -> Finding:
    soft, _ = _limit(pid, resource.RLIMIT_MEMLOCK)
    capacity = host_capacity_bytes(config)
    is_enough = soft == resource.RLIM_INFINITY or soft >= capacity
    said = "unlimited" if soft == resource.RLIM_INFINITY else format_size(soft)
    if has_accelerator and not is_enough:
        return warning(
            "RLIMIT_MEMLOCK",
            f"{said}, and HOST is {format_size(capacity)}: some drivers register no more of it "
            "with the device, and copies are slower",
            "LimitMEMLOCK=infinity of its unit, --ulimit memlock=-1 of its container",
        )
    return ok("RLIMIT_MEMLOCK", said if is_enough else f"{said}: enough without an accelerator")


def _nice(pid: int | None) -> Finding:
    """Of a running agent, what its event loop has; else what it would be permitted."""
    try:
        is_preferred = pid is not None and os.getpriority(os.PRIO_PROCESS, pid) < 0
    except OSError:  # it ended meanwhile
        pid = None
    if pid is None:
        is_preferred = scheduling.may_precede_other_threads()
    if is_preferred:
        return ok("RLIMIT_NICE", "the event loop gets a processor before threads that move bytes")
    return warning(
        "RLIMIT_NICE",
        "the event loop has no priority over threads that move bytes: lookups and hits wait "
        "longer while much is moved",
        "LimitNICE=-10 of its unit, --ulimit nice=30 of its container",
    )


def _memory(config: AgentConfig, allocated_bytes: int, pid: int | None) -> Iterator[Finding]:
    host, capacity = config.tiers.host, host_capacity_bytes(config)
    wanted = f"tiers.host.capacity is {format_size(capacity)}"
    limit = cgroup_limit_bytes(Path(f"/proc/{pid or 'self'}/cgroup"))
    whose = "the agent's cgroup" if pid else "this cgroup"
    if limit is not None and capacity + _OWN_BYTES > limit:
        yield problem(
            "cgroup",
            f"{wanted}, and {whose} may have {_about(limit)} in all: the agent would be killed "
            "or HOST stop growing before that",
            f"memory.max (MemoryMax=, resources.limits.memory) of at least "
            f"{_about(capacity + _OWN_BYTES + host.memory_reserve)}, or a smaller HOST",
        )
    elif limit is not None:
        yield ok("cgroup", f"{whose} may have {_about(limit)} of memory; {wanted}")
    else:
        yield ok("cgroup", f"{whose} has no limit of memory")
    available = memory.available_bytes() + allocated_bytes
    if available < capacity + host.memory_reserve:
        yield warning(
            "memory",
            f"{wanted}, {_about(available)} are available: HOST stops growing when less than "
            f"memory_reserve ({format_size(host.memory_reserve)}) is left",
            "a smaller tiers.host.capacity (`kvtier plan` says what is of use), or more memory",
        )
    else:
        yield ok("memory", f"{_about(available)} available; {wanted}")


def cgroup_limit_bytes(
    own: Path = Path("/proc/self/cgroup"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """The least limit of this process's cgroup and all above it, of version 1 or 2; None if there
    is none below what the machine has."""
    limits = []
    for line in _lines(own):
        number, controllers, path = line.split(":", 2)
        is_v2 = number == "0" and not controllers
        if not is_v2 and "memory" not in controllers.split(","):
            continue
        root = cgroups if is_v2 else cgroups / "memory"
        name = "memory.max" if is_v2 else "memory.limit_in_bytes"
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            limits += [int(text) for text in _lines(each / name) if text.isdecimal()]
            if each == root:
                break
    physical = _physical_bytes()
    return min((each for each in limits if each < physical), default=None)


def _physical_bytes() -> int:
    total = next(line for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal:"))
    return int(total.split()[1]) * 1024


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _about(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _said(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
