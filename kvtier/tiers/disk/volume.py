"""One directory of DISK: what is in it, and how much of it there may be."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvtier.errors import ConfigError
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.io import BlockIO, write_fully
from kvtier.tiers.disk.slab import (
    ASIDE,
    DEVICE_MARGIN_BYTES,
    SLAB_OVERHEAD_BYTES,
    NoRoomError,
    Slab,
    slab_bytes,
)
from kvtier.tiers.health import Health

log = logging.getLogger(__name__)

#: Beside slabs: the directories, the lock, the probe and two versions of namespaces.json.
_MOST_RESERVE_BYTES = 4 << 20
_RESERVE_SHARE = 16
_PROBE_BYTES = 4096


class Volume:
    """A directory that this agent alone uses, within `capacity_bytes` as `du` counts it.

    Raises ConfigError if the directory cannot be used or another agent has it.
    """

    def __init__(
        self,
        io: BlockIO,
        path: Path,
        capacity_bytes: int,
        *,
        stripe: int = 0,
        min_free_bytes: int = 0,
    ) -> None:
        self.io = io
        self.path = path
        self.capacity_bytes = capacity_bytes
        self.stripe = stripe
        self.min_free_bytes = min_free_bytes
        #: Why the last slab could not be made; empty if it could.
        self.growth_error = ""
        self.reserve_bytes = min(_MOST_RESERVE_BYTES, capacity_bytes // _RESERVE_SHARE)
        self._slab_bytes = 0
        #: Of slabs that count, and that the device does not have yet.
        self._unmade_bytes: dict[bytes, int] = {}
        self._is_buffered = False
        self._making_way = threading.Lock()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except OSError as error:
            raise ConfigError(f"tiers.disk.paths {path}: {error.strerror}") from error
        try:
            (path / ASIDE).mkdir(mode=0o700, exist_ok=True)
            self._aside_bytes = _allocated_bytes(path / ASIDE)
            self._device_bytes = io.free_bytes(path)
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"tiers.disk.paths {path}: {error.strerror}") from error

    def _take_lock(self) -> int:
        lock = os.open(self.path / "kvtier.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(
                f"tiers.disk.paths {self.path}: another agent uses it; stop it, or choose another "
                "directory"
            ) from error
        return lock

    @property
    def allocated_bytes(self) -> int:
        """What counts against the capacity now."""
        aside = min(self._aside_bytes, max(0, self.room_bytes))  # the rest makes way first
        return self.reserve_bytes + self._slab_bytes + aside

    @property
    def room_bytes(self) -> int:
        """For new slabs; what was set aside makes way."""
        return self.capacity_bytes - self.reserve_bytes - self._slab_bytes

    @property
    def excess_bytes(self) -> int:
        """How much more slabs take than they may; what was set aside makes way by itself."""
        return max(0, -self.room_bytes)

    @property
    def must_make_way(self) -> bool:
        """Whether what was set aside is more than there is room for."""
        return self._aside_bytes > max(0, self.room_bytes)

    @property
    def growth_bytes(self) -> int:
        """How large a new slab may be: the device may be smaller than the capacity."""
        device = self._device_bytes - self.min_free_bytes - DEVICE_MARGIN_BYTES
        unmade = sum(self._unmade_bytes.values())
        return min(self.room_bytes, device - unmade + self._aside_bytes)

    def headers(self) -> Iterator[fmt.SlabHeader]:
        """Of the slabs that are here, the one written to last first. They count from now on.

        What is not whole or has another version is set aside, what does not fit is deleted.
        """
        for leftover in (*self.path.glob("*.tmp"), *self._data_without_table()):
            leftover.unlink()
        found = sorted(self.path.glob("slab-*.table"), key=_last_write, reverse=True)
        foreign: set[int] = set()
        for table in found:
            try:
                header = self._header(table)
            except fmt.UnknownVersionError as error:
                foreign.add(error.version)
                self._set_aside(table)
            except (fmt.FormatError, OSError) as error:
                log.warning("%s: %s; set aside in %s", table.name, error, self.path / ASIDE)
                self._set_aside(table)
            else:
                if self.room_bytes < slab_bytes(header):
                    log.warning("%s does not fit into tiers.disk.capacity: deleted", table.name)
                    _unlink_both(table)
                    continue
                self._slab_bytes += slab_bytes(header)
                yield header
        for version in foreign:
            log.warning(
                "%s holds slabs of format version %d, this agent writes version %d: they are set "
                "aside in %s, and deleted when their space is needed; DISK starts empty",
                self.path,
                version,
                fmt.VERSION,
                self.path / ASIDE,
            )
        self.make_way()

    def _header(self, table: Path) -> fmt.SlabHeader:
        with table.open("rb") as file:
            header = fmt.decode_header(file.read(fmt.HEADER_BYTES))
        data = table.with_suffix(".data")
        if table.stem != f"slab-{header.slab_id.hex()}":
            raise fmt.FormatError("the header is that of another slab")
        if table.stat().st_size < header.table_bytes:
            raise fmt.FormatError("the table is cut off")
        if not data.exists() or data.stat().st_size < header.slots * header.slot_bytes:
            raise fmt.FormatError("the data file is missing or cut off")
        return header

    def _data_without_table(self) -> Iterator[Path]:
        for data in self.path.glob("slab-*.data"):
            if not data.with_suffix(".table").exists():
                yield data

    def _set_aside(self, table: Path) -> None:
        for path in (table, table.with_suffix(".data")):
            if path.exists():
                self.io.rename(path, self.path / ASIDE / path.name)
        self._aside_bytes = _allocated_bytes(self.path / ASIDE)

    def new_header(self, namespace: bytes, slots: int, slot_bytes: int) -> fmt.SlabHeader:
        """Of a slab to be made here; it counts from now on."""
        header = fmt.SlabHeader(secrets.token_bytes(16), namespace, slot_bytes, slots)
        self._slab_bytes += slab_bytes(header)
        self._unmade_bytes[header.slab_id] = slab_bytes(header)
        return header

    def slab_opened(self, slab: Slab) -> None:
        """The device has it. Called by movers."""
        self.look_at_space()
        self._unmade_bytes.pop(slab.header.slab_id, None)
        if not slab.is_direct and not self._is_buffered:
            self._is_buffered = True
            log.warning(
                "DISK %s: the file system refuses O_DIRECT; going through the page cache", self.path
            )

    def make_way(self) -> None:
        """Deletes what was set aside, the oldest first, until there is room. Called by movers."""
        if not self.must_make_way:
            return
        with self._making_way:
            for path in sorted((self.path / ASIDE).iterdir(), key=_last_write):
                if not self.must_make_way:
                    return
                log.info("deleting %s: its space is needed", path)
                self.io.unlink(path)
                self._aside_bytes = _allocated_bytes(self.path / ASIDE)

    def slab_gone(self, slab: Slab) -> None:
        """After its `discard`."""
        self._slab_bytes -= slab_bytes(slab.header)
        self._unmade_bytes.pop(slab.header.slab_id, None)
        if slab.is_set_aside:
            self._aside_bytes = _allocated_bytes(self.path / ASIDE)

    def probe(self) -> None:
        """Writes a page and syncs it. Raises OSError."""
        fd = self.io.open(self.path / "probe", os.O_RDWR | os.O_CREAT)
        try:
            write_fully(self.io, fd, [bytes(_PROBE_BYTES)], 0)
            self.io.sync(fd)
        finally:
            self.io.close(fd)

    def look_at_space(self) -> None:
        """Notes what the device has left. Called by movers."""
        self._device_bytes = self.io.free_bytes(self.path)

    def check_space(self, extra_bytes: int = 0) -> None:
        """Raises OSError if less than `min_free` would be left on the device. Called by movers."""
        self.look_at_space()
        left = self._device_bytes - extra_bytes
        if self.min_free_bytes and left < self.min_free_bytes:
            raise OSError(
                errno.ENOSPC,
                f"{max(0, left) >> 20} MiB would be left on the device, less than min_free "
                f"({self.min_free_bytes >> 20} MiB)",
            )

    # As a mover's storage.

    @property
    def label(self) -> str:
        return f"DISK {self.path}"

    def check(self) -> None:
        """Raises OSError if less than `min_free` is left on the device."""
        self.check_space()

    def verdict(self, error: OSError, *, is_read: bool) -> Health | None:
        """What cannot be written is a reason to stop writing, what cannot be read a miss."""
        if isinstance(error, NoRoomError):
            return None
        return Health.ACTIVE if is_read else Health.DEGRADED

    def close(self) -> None:
        os.close(self._lock)


def slots_within(room_bytes: int, slot_bytes: int) -> int:
    """How many slots a slab of so many bytes in all has."""
    left = room_bytes - SLAB_OVERHEAD_BYTES - 2 * fmt.HEADER_BYTES
    return max(0, left // (slot_bytes + fmt.RECORD_BYTES))


def _allocated_bytes(directory: Path) -> int:
    total = 0
    for each in directory.iterdir():
        with suppress(FileNotFoundError):  # a mover makes way
            total += each.stat().st_blocks * 512
    return total


def _last_write(path: Path) -> int:
    return path.stat().st_mtime_ns


def _unlink_both(table: Path) -> None:
    table.unlink()
    table.with_suffix(".data").unlink(missing_ok=True)
