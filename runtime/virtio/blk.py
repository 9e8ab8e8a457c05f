"""The block device (virtio 1.x, section 5.2): a file, or a block device of the host.

A request is a header of 16 bytes, data, and a status byte, which is the last
byte that the device may write; the queue does not care how they are cut into
buffers (lguest's Launcher did not either).

Every request is done when its status is written.  A write is then in the host's
page cache; only a flush makes it durable (fdatasync), so a driver that knows
VIRTIO_BLK_F_FLUSH gets what it asks for.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime import nursery
from runtime.errors import UserError
from runtime.virtio.device import BLOCK, feature_bits
from runtime.virtio.service import QueueService, Service
from runtime.virtio.vring import Chain, VringError

SECTOR = 512
F_SEG_MAX, F_RO, F_FLUSH = 2, 5, 9
SEG_MAX = 254
"""Data buffers in one request: a queue of 256 less the header and the status."""

T_OUT, T_SCSI_CMD, T_FLUSH = 1, 2, 4
"""Bits of the type, tested in the order SCSI, OUT, FLUSH; a type with none of them is a read.

That is lguest's rule, so a barrier (bit 31) changes nothing, and a request for
the serial number (8) reads the first bytes of the disk.
"""
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2

PIECE = 1 << 20
"""Bytes moved at once: what the Guest may ask for in one request has no limit worth copying."""
OFFSET_MAX = 1 << 63

_HEADER = struct.Struct("<IIQ")  # type, priority, sector
_CONFIG = struct.Struct("<QII")  # capacity in sectors, size_max (not offered), seg_max


class BlockDevice:
    """One disk; `path` is locked against other machines while it is open.

    Raises UserError when it cannot be used.  The capacity is in whole sectors,
    but the rest of a file of another length can be read and written, as on lguest.
    """

    kind = BLOCK
    name = "block"

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self._read_only = read_only
        with nursery.no_births():
            self._fd = nursery.adopt(_open(path, read_only))
        try:
            self._lock(path)
            self._size = _size(self._fd, path)
        except BaseException:
            self.close()
            raise
        self.features = feature_bits(F_SEG_MAX, F_FLUSH)
        if read_only:
            # lguest had no read-only disks.  A driver that does not know this bit sees its
            # writes fail.
            self.features |= feature_bits(F_RO)
        self.config = _CONFIG.pack(self._size // SECTOR, 0, SEG_MAX)
        self.services: Sequence[Service] = (self._serve,)

    def start(self, features: int, queues: Sequence[QueueService]) -> None:
        """Nothing depends on what the driver knows."""

    def reset(self) -> None:
        """Requests are done when they are answered: nothing is left over."""

    def close(self) -> None:
        """Close the file, which gives the lock back."""
        if self._fd >= 0:
            nursery.close_fd(self._fd)
            self._fd = -1

    def _lock(self, path: str | Path) -> None:
        """Readers may share it, a writer has it alone.

        The lock belongs to the open file, so it is gone with the last
        descriptor, however the Host ends (workers close theirs at birth).
        """
        how = fcntl.LOCK_SH if self._read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"disk {path} is in use by another machine") from error
        except OSError as error:
            raise UserError(f"disk {path} cannot be locked: {error.strerror}") from error

    # Requests -----------------------------------------------------------------------

    def _serve(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        header = chain.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise VringError(f"a block request's header has {len(header)} bytes")
        status = chain.take_last_byte()
        if status is None:
            raise VringError("a block request has no room for its status")
        kind, _, sector = _HEADER.unpack(header)
        try:
            outcome = self._do(kind, sector, chain, queue.check)
        except OSError:
            outcome = S_IOERR
        chain.write_byte(status, outcome)
        queue.used(chain)

    def _do(self, kind: int, sector: int, chain: Chain, check: Callable[[], None]) -> int:
        """Returns the status; `check` ends a long request when the machine does."""
        if kind & T_SCSI_CMD:
            return S_UNSUPP
        if kind & T_OUT:
            return self._write(sector, chain, check)
        if kind & T_FLUSH:
            os.fdatasync(self._fd)
            return S_OK
        return self._read(sector, chain, check)

    def _write(self, sector: int, chain: Chain, check: Callable[[], None]) -> int:
        length, offset = chain.unread, sector * SECTOR
        # lguest wrote, trimmed the file and died; we look first, and only the Guest dies.
        if length and offset + length > self._size:
            raise VringError(
                f"a write of {length} bytes at sector {sector} goes beyond the end of the disk"
            )
        if self._read_only:
            return S_IOERR
        while chain.unread:
            check()
            data = memoryview(chain.read(PIECE))
            while data:
                written = os.pwrite(self._fd, data, offset)
                if not written:
                    return S_IOERR
                offset += written
                data = data[written:]
        return S_OK

    def _read(self, sector: int, chain: Chain, check: Callable[[], None]) -> int:
        """Beyond the end there is nothing: the used length is short and the status is OK.

        As on lguest; what the driver had in the rest of its buffer stays there.
        """
        offset = sector * SECTOR
        if offset >= OFFSET_MAX:
            raise VringError(f"a read of {chain.room} bytes at sector {sector}, where no disk is")
        while chain.room:
            check()
            data = os.pread(self._fd, min(chain.room, PIECE), offset)
            if not data:
                break
            offset += chain.write(data)
        return S_OK


def _open(path: str | Path, read_only: bool) -> int:
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        # O_NONBLOCK: a FIFO given by mistake must be a sentence, not a wait.
        return os.open(path, flags)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"disk {path} cannot be opened: {why}") from error


def _size(fd: int, path: str | Path) -> int:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UserError(f"disk {path} is neither a file nor a block device")
    return os.lseek(fd, 0, os.SEEK_END)
