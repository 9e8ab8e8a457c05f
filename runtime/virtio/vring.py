"""Split virtqueues in guest memory (virtio 1.x, section 2.7; the legacy layout is the same).

Everything in a ring was written by the Guest, perhaps a moment ago by another
vCPU, and perhaps to hurt us.  So every index, address and length is read once
into Python, checked there, and used from there.  What the Guest must not do
raises VringError, one sentence.  What we count ourselves (how far we have read
the available ring, how far we have filled the used ring) is never read back.

Memory ordering.  Guest memory is mapped in all processes of the machine.
x86 keeps loads in order among themselves and stores among themselves, so an
index read before the entries it covers, and an entry written before the index
that covers it, need no fence.  What x86 does not keep is a store before a later
load, and a ring needs that in two places (`enable_notifications()` and
`wants_interrupt`).  There we rely on `ram.write()`: smp_dma_write() ends with a
locked instruction (PAGE_WRITER -= 1, coherence.c), which is a full fence.
16-bit words are copied whole by memcpy(), so an index is never half new.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

NUM_MAX = 32768
TOTAL_MAX = 1 << 32
"""Bytes in one chain (2.7.4.2: a driver must not go beyond that)."""

F_INDIRECT = 28
"""VIRTIO_F_INDIRECT_DESC, a feature bit."""

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1

_DESC = struct.Struct("<QIHH")  # address, length, flags, next
_USED_ELEM = struct.Struct("<II")  # head of the chain, bytes written
_INDEX_MASK = 0xFFFF

Buffer = tuple[int, int]
"""(guest-physical address, length in bytes)"""


class VringError(Exception):
    """The Guest's driver broke a rule of the ring; `str()` is one sentence without a newline."""


class Ram(Protocol):
    """Guest memory, as runtime.memory.DmaRam has it."""

    size: int

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at guest-physical `address`."""

    def write(self, address: int, data: bytes | memoryview) -> None:
        """All of `data`; whatever is read afterwards is read after it (a full fence)."""


class Layout(NamedTuple):
    """Where the three parts of a ring are, and what they take together."""

    desc: int
    avail: int
    used: int
    size: int


def legacy_layout(base: int, num: int, align: int) -> Layout:
    """The one block of a legacy ring (2.7.2): the used ring begins at a multiple of `align`."""
    avail = 16 * num
    used = (avail + 6 + 2 * num + align - 1) // align * align
    return Layout(base, base + avail, base + used, used + 6 + 8 * num)


class _Cursor:
    """How far a device has come in one half of a chain."""

    def __init__(self, buffers: list[Buffer]) -> None:
        self._buffers = buffers
        self._at = 0
        self._offset = 0
        self.left = sum(length for _, length in buffers)

    def take(self, length: int) -> list[Buffer]:
        """The next `length` bytes, or as many as are left, as pieces of guest memory."""
        pieces = []
        length = min(length, self.left)
        self.left -= length
        while length:
            address, size = self._buffers[self._at]
            part = min(size - self._offset, length)
            if part:
                pieces.append((address + self._offset, part))
            length -= part
            self._offset += part
            if self._offset == size:
                self._at += 1
                self._offset = 0
        return pieces

    def take_last_byte(self) -> int | None:
        """The address of the last byte, which is no longer part of this; None: nothing is left."""
        if not self.left:
            return None
        while self._buffers[-1][1] == 0:
            self._buffers.pop()
        address, size = self._buffers[-1]
        self._buffers[-1] = (address, size - 1)
        self.left -= 1
        return address + size - 1


class Chain:
    """One request: what the device may read, then what it may write, each in order.

    The halves are streams: how the driver cut them into buffers means nothing
    (2.7.4.3, "message framing").  All buffers are known to be in memory.
    """

    def __init__(self, ram: Ram, head: int, readable: list[Buffer], writable: list[Buffer]) -> None:
        self.head = head
        self.readable = tuple(readable)
        self.writable = tuple(writable)
        self._ram = ram
        self._source = _Cursor(readable)
        self._target = _Cursor(writable)
        self.written = 0

    @property
    def unread(self) -> int:
        """Bytes that `read()` has not given yet; at first the whole readable length."""
        return self._source.left

    @property
    def room(self) -> int:
        """Bytes that `write()` still takes; at first the whole writable length."""
        return self._target.left

    def read(self, length: int) -> bytes:
        """The next `length` bytes, or as many as are left."""
        pieces = self._source.take(length)
        if len(pieces) == 1:
            return self._ram.read(*pieces[0])
        return b"".join([self._ram.read(*piece) for piece in pieces])

    def write(self, data: bytes | memoryview) -> int:
        """As much of `data` as there is room for; returns how much, which `written` counts."""
        view = memoryview(data)
        begun = self.written
        for address, part in self._target.take(len(view)):
            self._ram.write(address, view[:part])
            view = view[part:]
            self.written += part
        return self.written - begun

    def take_last_byte(self) -> int | None:
        """The address of the last writable byte, no longer part of `room`; for a status."""
        return self._target.take_last_byte()

    def write_byte(self, address: int, value: int) -> None:
        """Write what `take_last_byte()` gave."""
        self._ram.write(address, bytes((value,)))
        self.written += 1


class Vring:
    """The device's side of one split virtqueue; used by one thread at a time.

    `desc`, `avail` and `used` are guest-physical addresses of any width.
    Raises VringError when the ring does not lie in memory, or as a virtqueue may.
    """

    def __init__(
        self, ram: Ram, num: int, desc: int, avail: int, used: int, *, indirect: bool = False
    ) -> None:
        if num & (num - 1) or not 1 <= num <= NUM_MAX:
            raise VringError(f"a virtqueue cannot have {num} descriptors")
        for name, address, size, align in (
            ("descriptor table", desc, 16 * num, 16),
            ("available ring", avail, 6 + 2 * num, 2),
            ("used ring", used, 6 + 8 * num, 4),
        ):
            if address % align or not _inside(ram, address, size):
                raise VringError(f"the {name} cannot be at {address:#x}")
        self.num = num
        self._ram = ram
        self._desc = desc
        self._avail = avail
        self._used = used
        self._indirect = indirect
        self._taken = 0  # available entries that we have popped, modulo 2**16
        self._offered = 0  # and where the driver's index was when we last looked
        self._returned = 0  # used entries that we have pushed, modulo 2**16
        self._used_flags = 0

    # Available buffers --------------------------------------------------------------

    def pop(self) -> Chain | None:
        """The next request; None when there is none.  Raises VringError."""
        if self._taken == self._offered and not self._look():
            return None
        head = self._read_u16(self._avail + 4 + 2 * (self._taken % self.num))
        if head >= self.num:
            raise VringError(f"descriptor {head} was made available in a queue of {self.num}")
        self._taken = (self._taken + 1) & _INDEX_MASK
        return self._walk(head)

    def _look(self) -> bool:
        """Read the driver's index; True when it has made something available."""
        offered = self._read_u16(self._avail + 2)
        waiting = (offered - self._taken) & _INDEX_MASK
        if waiting > self.num:
            raise VringError(
                f"the available index moved from {self._taken} to {offered} "
                f"in a queue of {self.num}"
            )
        self._offered = offered
        return waiting > 0

    def _walk(self, head: int) -> Chain:
        """Collect the chain that begins at `head`: at most `num` descriptors, wherever they are.

        That limit is also what ends a loop.
        """
        readable: list[Buffer] = []
        writable: list[Buffer] = []
        table: bytes | None = None  # the indirect table, once we are in it
        count, index, total, seen = self.num, head, 0, 0
        while True:
            if table is None:
                raw = self._ram.read(self._desc + 16 * index, 16)
                address, length, flags, following = _DESC.unpack(raw)
                if flags & DESC_INDIRECT:
                    table = self._read_table(address, length, flags)
                    count, index = len(table) // 16, 0
                    continue
            else:
                address, length, flags, following = _DESC.unpack_from(table, 16 * index)
                if flags & DESC_INDIRECT:
                    raise VringError("an indirect table refers to another one")
            seen += 1
            if seen > self.num:
                raise VringError(f"the chain at descriptor {head} has more than {self.num} parts")
            if not _inside(self._ram, address, length):
                raise VringError(f"descriptor {index} is not in memory: {address:#x} len {length}")
            total += length
            if flags & DESC_WRITE:
                writable.append((address, length))
            elif writable:
                raise VringError(f"the chain at descriptor {head} is readable after writable")
            else:
                readable.append((address, length))
            if not flags & DESC_NEXT:
                break
            if following >= count:
                raise VringError(f"descriptor {index} is followed by {following} of {count}")
            index = following
        if total > TOTAL_MAX:
            raise VringError(f"the chain at descriptor {head} has {total} bytes")
        return Chain(self._ram, head, readable, writable)

    def _read_table(self, address: int, length: int, flags: int) -> bytes:
        """All of an indirect table (2.7.5.3); whether that descriptor is writable means nothing."""
        if not self._indirect:
            raise VringError("an indirect descriptor, which was not negotiated")
        if flags & DESC_NEXT:
            raise VringError("an indirect descriptor has a next one")
        if length == 0 or length % 16 or length > 16 * self.num:
            raise VringError(f"an indirect table of {length} bytes")
        if not _inside(self._ram, address, length):
            raise VringError(f"an indirect table is not in memory: {address:#x} len {length}")
        return self._ram.read(address, length)

    # Used buffers -------------------------------------------------------------------

    def push(self, chain: Chain) -> None:
        """Give `chain` back; it tells the driver how many bytes were written."""
        slot = self._used + 4 + 8 * (self._returned % self.num)
        # 2**32 bytes written would read as none: one less is the most that can be said.
        written = min(chain.written, TOTAL_MAX - 1)
        self._ram.write(slot, _USED_ELEM.pack(chain.head, written))
        self._returned = (self._returned + 1) & _INDEX_MASK
        # Pairs with the driver's read of this index before it reads the entry.
        self._write_u16(self._used + 2, self._returned)

    @property
    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed.

        The flag is read after the used index was written, with write()'s fence
        between.  Pairs with the driver, which clears the flag, has a fence, and
        then looks at the used index once more: one of the two sees the other.
        """
        return not self._read_u16(self._avail) & AVAIL_NO_INTERRUPT

    # Notifications ------------------------------------------------------------------

    def disable_notifications(self) -> None:
        """While we look at the ring anyway, the driver need not tell us."""
        self._set_used_flags(USED_NO_NOTIFY)

    def enable_notifications(self) -> bool:
        """From now on the driver tells us; True when something is there already: do not sleep.

        The order is what keeps a request from lying there for ever: allow,
        fence, look again, then sleep.  The driver writes its index, has a fence,
        and then looks at our flag.  If it still saw the old flag and told nobody,
        then it wrote its index before we look here.
        """
        self._set_used_flags(0)  # write() is the fence
        return self._taken != self._offered or self._look()

    def _set_used_flags(self, flags: int) -> None:
        if flags != self._used_flags:
            self._used_flags = flags
            self._write_u16(self._used, flags)

    # Words --------------------------------------------------------------------------

    def _read_u16(self, address: int) -> int:
        return int.from_bytes(self._ram.read(address, 2), "little")

    def _write_u16(self, address: int, value: int) -> None:
        self._ram.write(address, value.to_bytes(2, "little"))


def _inside(ram: Ram, address: int, length: int) -> bool:
    return length <= ram.size and address <= ram.size - length
