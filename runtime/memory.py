"""Shared memory that nobody can leave behind, and checked access to guest RAM.

A block is created under a name that carries our pid, mapped, and unlinked at
once: from then on only the processes that have it mapped keep it alive.  The
microseconds in between are covered by `sweep_leftovers()` at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posix_ipc

from runtime.errors import HostError, UserError
from runtime.sizes import MIB, align_up, format_size

PREFIX = "smpguest"
SHM_DIR = Path("/dev/shm")  # where Linux keeps POSIX shared memory
FREE_MARGIN = 1 << 20
"""Bytes of /dev/shm that we leave to others."""


def _pid_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sweep_leftovers(directory: Path = SHM_DIR) -> list[str]:
    """Unlink blocks whose Host died between create and unlink; returns their names."""
    swept = []
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    for name in names:
        parts = name.split("-")
        if len(parts) != 3 or parts[0] != PREFIX or not parts[1].isdigit():
            continue
        if _pid_alive(int(parts[1])):
            continue
        with contextlib.suppress(OSError):
            (directory / name).unlink()
            swept.append(name)
    return swept


def _free_bytes() -> int | None:
    try:
        stat = os.statvfs(SHM_DIR)
    except OSError:
        return None
    return stat.f_bavail * stat.f_frsize


def _full(what: str, size: int) -> UserError:
    free = _free_bytes()
    # Rounded apart: what is free never reads as enough.
    left = "" if free is None else f", where {free // MIB}M are free"
    return UserError(
        f"{what} needs {align_up(size + FREE_MARGIN, MIB) // MIB}M of {SHM_DIR}{left}; "
        "try a smaller --memory or, in a container, a larger /dev/shm (docker run --shm-size=1g)"
    )


def check_room(size: int, what: str) -> None:
    """Raises UserError when /dev/shm cannot hold `size` bytes more; `what` begins the sentence."""
    free = _free_bytes()
    if free is not None and free < size + FREE_MARGIN:
        raise _full(what, size)


class SharedBlock:
    """`size` bytes of zeroed memory shared with every process forked afterwards."""

    def __init__(self, size: int, what: str) -> None:
        """Raises UserError when /dev/shm cannot hold it; `what` names it in that sentence."""
        self.size = size
        check_room(size, what)
        name = f"/{PREFIX}-{os.getpid()}-{os.urandom(6).hex()}"
        try:
            shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
        except OSError as error:
            raise UserError(
                f"cannot create shared memory for {what}: {error.strerror or error}"
            ) from error
        try:
            os.ftruncate(shm.fd, size)
            # All of it now: a full tmpfs must be a sentence here, not a SIGBUS later.
            os.posix_fallocate(shm.fd, 0, size)
            self.map = mmap.mmap(shm.fd, size, mmap.MAP_SHARED)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise _full(what, size) from error
            raise UserError(
                f"cannot get {format_size(size)} of {what}: {error.strerror or error}"
            ) from error
        finally:
            shm.unlink()
            shm.close_fd()

    def hide_from_later_workers(self) -> None:
        """Keep the mapping out of processes forked from now on (workers of other machines)."""
        self.map.madvise(mmap.MADV_DONTFORK)

    def close(self) -> None:
        """Unmap it here (workers keep theirs)."""
        self.map.close()


class GuestRam:
    """Guest-physical memory as devices and loaders see it: every access is checked.

    An access that leaves RAM kills the Guest through `kill(text)`, and the
    read yields zeros, as lguest's `__lgread` does.
    """

    def __init__(self, block: SharedBlock, kill: Callable[[str], None]) -> None:
        self._map = block.map
        self._kill = kill
        self.size = block.size

    def _inside(self, address: int, length: int) -> bool:
        return 0 <= address <= self.size and 0 <= length <= self.size - address

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at guest-physical `address`; zeros if that is not RAM (the Guest dies)."""
        if not self._inside(address, length):
            self._kill(f"bad read address {address:#x} len {length}")
            return bytes(min(max(length, 0), self.size))  # the Guest chose `length`
        return self._map[address : address + length]

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Before the Guest runs only: it does not tell the engines (see `smp_dma_write`)."""
        if not self._inside(address, len(data)):
            self._kill(f"bad write address {address:#x} len {len(data)}")
            return
        self._map[address : address + len(data)] = data

    def fill(self, address: int, length: int) -> None:
        """Zero `length` bytes."""
        self.write(address, bytes(max(length, 0)))


class DmaRam(GuestRam):
    """Guest RAM while the Guest runs: writes invalidate translations of what they overwrite."""

    def __init__(
        self, block: SharedBlock, kill: Callable[[str], None], switcher: Any, control: Any, ram: Any
    ) -> None:
        super().__init__(block, kill)
        self._switcher = switcher
        self._control = control
        self._ram = ram
        self._lock = threading.Lock()  # a DMA in another thread against close()

    def close(self) -> None:
        """The memory goes away: what is read or written from now on raises HostError."""
        with self._lock:
            self._control = self._ram = None

    def _check_open(self) -> None:
        if self._ram is None:
            raise HostError("the machine is closed")

    def read(self, address: int, length: int) -> bytes:
        """As before the Guest runs."""
        self._check_open()
        return super().read(address, length)

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Device DMA: coherent with every engine's translations (see `smp_dma_write`)."""
        with self._lock:
            self._check_open()
            if self._inside(address, len(data)):
                view = self._switcher.ffi.from_buffer(data)
                lib = self._switcher.lib
                lib.smp_dma_write(self._control, self._ram, address, view, len(data))
                return
        self._kill(f"bad write address {address:#x} len {len(data)}")
