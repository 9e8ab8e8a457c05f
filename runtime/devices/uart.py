"""A 16550A UART (National PC16550D data sheet), COM1 at 0x3f8, IRQ 4.

The line is infinitely fast: a byte written to THR has left when the write is
done, so THRE and TEMT are always set.  Therefore THR writes are posted and LSR
is answered from a shadow: a guest prints without ever waiting for the Host.
The shadow is published only while reading LSR has no side effect: no error
bits to clear, not in loopback mode (where a posted THR write would have to
show up in DR at once).

Two deliberate choices:
 * OUT2 does not gate the interrupt, as in QEMU and unlike in a PC: xv6 writes
   zero to MCR and waits for receive interrupts all the same.
 * Input has flow control: a byte enters the FIFO only while there is room and
   the Guest looks ready for it (receive interrupt enabled, or RTS, or the UART
   never set up at all); what a FIFO reset would destroy goes back to the
   sender.  So nothing typed or piped in early is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)
PORTS = 8
POSTED = frozenset({RBR_THR, IER, SCR})
"""Offsets whose writes may be posted; reads of them drain the posts first."""

FIFO_SIZE = 16
WAITING_MAX = 4096
"""Bytes of input taken from the sender ahead of the Guest."""

IER_RX, IER_THRE, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 1, 2, 4
LCR_BREAK, LCR_DLAB = 0x40, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_DR, LSR_OE, LSR_BI, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x10, 0x20, 0x40
LSR_ERRORS = 0x1E
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_DELTAS = 0x0F
TRIGGER = (1, 4, 8, 14)


class Uart:
    """One 16550A.

    `transmit(byte)` sends; `interrupt(level)` drives the IRQ line;
    `publish(offset, value)` puts a read shadow in front of a register, None
    takes it away.
    """

    width = 1

    def __init__(
        self,
        transmit: Callable[[int], None],
        interrupt: Callable[[bool], None],
        publish: Callable[[int, int | None], None],
    ) -> None:
        self._transmit = transmit
        self._interrupt = interrupt
        self._publish = publish
        self._waiting: deque[int] = deque()  # sent to us, not yet on the wire
        self._fifo: deque[tuple[int, bool]] = deque()  # (byte, came from outside)
        self._ier = 0
        self._fcr = 0
        self._lcr = 0
        self._mcr = 0
        self._scr = 0
        self._divisor = 12  # 9600 baud
        self._errors = 0  # OE, PE, FE, BI since the last LSR read
        self._msr_deltas = 0
        self._thre_pending = False
        self._set_up = False  # LCR has been written
        self._line_busy = False  # the console's backlog is too long
        self._level = False
        self._published: int | None = -1
        self._update()

    # The sender's side --------------------------------------------------------

    @property
    def input_room(self) -> int:
        """How many bytes `receive()` takes now."""
        return max(0, WAITING_MAX - len(self._waiting))

    def receive(self, data: bytes) -> None:
        """Input from outside, at most `input_room` bytes."""
        self._waiting.extend(data)
        self._feed()
        self._update()

    def take_unread(self) -> bytes:
        """All input that the Guest has not read; it is the caller's again."""
        self._give_back()
        unread = bytes(self._waiting)
        self._waiting.clear()
        self._update()
        return unread

    def set_line_busy(self, busy: bool) -> None:
        """Back-pressure: while busy THRE and TEMT are clear, so a polite guest waits."""
        if busy == self._line_busy:
            return
        self._line_busy = busy
        if not busy:
            self._thre_pending = True
        self._update()

    # The Guest's side ---------------------------------------------------------

    def read(self, offset: int, size: int) -> int:  # one register a return
        """IN from register `offset`."""
        if offset == RBR_THR:
            if self._lcr & LCR_DLAB:
                return self._divisor & 0xFF
            return self._read_rbr()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == IIR_FCR:
            return self._read_iir()
        if offset == LCR:
            return self._lcr
        if offset == MCR:
            return self._mcr
        if offset == LSR:
            value = self._lsr()
            self._errors = 0
            self._update()
            return value
        if offset == MSR:
            value = self._msr()
            self._msr_deltas = 0
            self._update()
            return value
        return self._scr

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT to register `offset`; LSR and MSR ignore writes."""
        if offset == RBR_THR:
            self._write_thr(value)
        elif offset == IER:
            self._write_ier(value)
        elif offset == IIR_FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self._write_lcr(value)
        elif offset == MCR:
            self._write_mcr(value)
        elif offset == SCR:
            self._scr = value

    # Registers ----------------------------------------------------------------

    def _read_rbr(self) -> int:
        byte = self._fifo.popleft()[0] if self._fifo else 0
        self._feed()
        self._update()
        return byte

    def _write_thr(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if not (self._mcr & MCR_LOOP or self._ier & IER_THRE):
            self._transmit(value)  # the usual case: nothing else can change
            self._thre_pending = True
            return
        # Writing clears the THRE interrupt; the byte leaves at once, which sets
        # it again: an edge-triggered input must see the line fall between.
        self._thre_pending = False
        self._update()
        if self._mcr & MCR_LOOP:
            self._push(value, outside=False)
        else:
            self._transmit(value)
        self._thre_pending = True
        self._update()

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        enabled = value & ~self._ier
        self._ier = value & 0x0F
        if enabled & IER_THRE:
            self._thre_pending = True
        self._feed()
        self._update()

    def _read_iir(self) -> int:
        source = self._pending()
        if source == IIR_THRE:
            self._thre_pending = False
            self._update()
        return source | (IIR_FIFO if self._fcr & FCR_ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        toggled = (value ^ self._fcr) & FCR_ENABLE
        if toggled or value & FCR_CLEAR_RX:
            self._give_back()
            self._fifo.clear()
        if toggled or value & FCR_CLEAR_TX:
            self._thre_pending = True
        self._fcr = value & 0xC9 if value & FCR_ENABLE else 0
        self._feed()
        self._update()

    def _write_lcr(self, value: int) -> None:
        began = (value & ~self._lcr) & LCR_BREAK
        self._lcr = value
        self._set_up = True
        if began and self._mcr & MCR_LOOP:
            self._errors |= LSR_BI
            self._push(0, outside=False)
        if not self._ready():
            self._give_back()
        self._update()

    def _write_mcr(self, value: int) -> None:
        before = self._msr() & 0xF0
        entered = (value & ~self._mcr) & MCR_LOOP
        self._mcr = value & 0x1F
        if entered:
            self._give_back()
        after = self._msr() & 0xF0
        self._msr_deltas |= ((before ^ after) >> 4) & 0x0B
        if before & ~after & MSR_RI:
            self._msr_deltas |= 0x04  # trailing edge of RI only
        self._feed()
        self._update()

    def _lsr(self) -> int:
        value = self._errors
        if self._fifo:
            value |= LSR_DR
        if not self._line_busy:
            value |= LSR_THRE | LSR_TEMT
        return value

    def _msr(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CTS | MSR_DSR | MSR_DCD | self._msr_deltas
        looped = 0
        for source, target in (
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ):
            if self._mcr & source:
                looped |= target
        return looped | self._msr_deltas

    # FIFO, interrupt, shadow ----------------------------------------------------

    def _depth(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _ready(self) -> bool:
        if self._mcr & MCR_LOOP:
            return False
        return bool(self._ier & IER_RX or self._mcr & MCR_RTS) or not self._set_up

    def _feed(self) -> None:
        while self._waiting and len(self._fifo) < self._depth() and self._ready():
            self._push(self._waiting.popleft(), outside=True)

    def _push(self, byte: int, *, outside: bool) -> None:
        if len(self._fifo) >= self._depth():
            self._errors |= LSR_OE
            if not self._fcr & FCR_ENABLE:
                self._fifo[-1] = (byte, outside)
            return
        self._fifo.append((byte, outside))

    def _give_back(self) -> None:
        """Unread input from outside returns to the sender; looped bytes stay."""
        outside = [byte for byte, came_in in self._fifo if came_in]
        self._waiting.extendleft(reversed(outside))
        self._fifo = deque((byte, came_in) for byte, came_in in self._fifo if not came_in)

    def _pending(self) -> int:
        """The highest-priority interrupt (IIR bits 0..3)."""
        if self._ier & IER_LINE and self._errors & LSR_ERRORS:
            return IIR_LINE
        if self._ier & IER_RX and self._fifo:
            if not self._fcr & FCR_ENABLE or len(self._fifo) >= TRIGGER[self._fcr >> 6]:
                return IIR_RX
            return IIR_TIMEOUT
        if self._ier & IER_THRE and self._thre_pending and not self._line_busy:
            return IIR_THRE
        if self._ier & IER_MODEM and self._msr_deltas:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        level = self._pending() != IIR_NONE
        if level != self._level:
            self._level = level
            self._interrupt(level)
        shadow = None if self._errors or self._mcr & MCR_LOOP else self._lsr()
        if shadow != self._published:
            self._published = shadow
            self._publish(LSR, shadow)
