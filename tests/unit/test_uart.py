"""The 16550A: registers, FIFO, interrupts, loopback, and input that is never lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.devices import uart
from runtime.devices.uart import FCR_ENABLE, IER, IIR_FCR, LCR, LSR, MCR, MSR, RBR_THR, SCR, Uart


class Wired(Uart):
    """A UART whose three wires are recorded."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.edges: list[bool] = []
        self.shadow: int | None = None
        super().__init__(self.sent.append, self.edges.append, self.note)

    def note(self, offset: int, value: int | None) -> None:
        assert offset == LSR
        self.shadow = value

    @property
    def line(self) -> bool:
        return bool(self.edges) and self.edges[-1]

    def inb(self, offset: int) -> int:
        """As the Guest sees it: the Switcher answers LSR from the shadow when there is one."""
        if offset == LSR and self.shadow is not None:
            return self.shadow
        return self.read(offset, 1)

    def outb(self, offset: int, value: int) -> None:
        self.write(offset, 1, value)


@pytest.fixture
def com() -> Wired:
    return Wired()


def test_power_on(com: Wired) -> None:
    assert [com.inb(i) for i in (IER, IIR_FCR, LCR, MCR, LSR)] == [0, 1, 0, 0, 0x60]
    assert com.inb(MSR) & 0xF0 == 0xB0
    assert not com.line


def test_transmit(com: Wired) -> None:
    for byte in b"hello":
        assert com.inb(LSR) & 0x20
        com.outb(RBR_THR, byte)
    assert com.sent == b"hello"
    assert com.shadow == 0x60


def test_divisor_latch_hides_data_and_ier(com: Wired) -> None:
    com.outb(IER, 5)
    com.outb(LCR, 0x83)
    com.outb(RBR_THR, 0x34)
    com.outb(IER, 0x12)
    assert (com.inb(RBR_THR), com.inb(IER)) == (0x34, 0x12)
    com.outb(LCR, 3)
    assert com.inb(IER) == 5
    assert com.sent == b""


def test_scratch_and_masks(com: Wired) -> None:
    com.outb(SCR, 0xA5)
    com.outb(IER, 0xFF)
    com.outb(MCR, 0xFF)
    assert (com.inb(SCR), com.inb(IER), com.inb(MCR)) == (0xA5, 0x0F, 0x1F)


def test_fifo_bits_in_iir(com: Wired) -> None:
    com.outb(IIR_FCR, FCR_ENABLE)
    assert com.inb(IIR_FCR) == 0xC1
    com.outb(IIR_FCR, 0)
    assert com.inb(IIR_FCR) == 0x01


def test_receive_interrupt_and_data_ready(com: Wired) -> None:
    com.outb(IER, 1)
    com.receive(b"ab")
    assert com.line
    assert com.inb(LSR) & 1
    assert com.inb(IIR_FCR) & 0x0F == 0x04
    assert [com.inb(RBR_THR), com.inb(RBR_THR)] == [ord("a"), ord("b")]
    assert not com.line
    assert not com.inb(LSR) & 1


@pytest.mark.parametrize(("level", "count"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_levels(com: Wired, level: int, count: int) -> None:
    com.outb(IIR_FCR, FCR_ENABLE | level << 6)
    com.outb(IER, 1)
    com.receive(b"x" * (count - 1))
    if count > 1:
        assert com.inb(IIR_FCR) & 0x0F == 0x0C  # time-out: fewer than the level wait
    com.receive(b"x")
    assert com.inb(IIR_FCR) & 0x0F == 0x04


def test_thre_interrupt_rises_on_enable_and_after_every_byte(com: Wired) -> None:
    com.outb(IER, 2)
    assert com.line
    assert com.inb(IIR_FCR) & 0x0F == 0x02
    assert not com.line  # reading IIR cleared it
    com.outb(RBR_THR, 1)
    assert com.line
    edges = len(com.edges)
    com.outb(RBR_THR, 2)  # not acknowledged: the line must still fall and rise
    assert com.edges[edges:] == [False, True]


def test_receive_has_priority_over_transmit(com: Wired) -> None:
    com.outb(IER, 3)
    com.receive(b"a")
    assert com.inb(IIR_FCR) & 0x0F == 0x04
    com.inb(RBR_THR)
    assert com.inb(IIR_FCR) & 0x0F == 0x02
    assert com.inb(IIR_FCR) & 0x0F == 0x01


def test_loopback_shows_data_at_once_and_sends_nothing(com: Wired) -> None:
    com.outb(MCR, 0x10)
    assert com.shadow is None  # LSR has to come from us now
    com.outb(RBR_THR, 0x5A)
    assert com.inb(LSR) & 1
    assert com.inb(RBR_THR) == 0x5A
    assert com.sent == b""
    com.outb(MCR, 0)
    assert com.shadow == 0x60


@pytest.mark.parametrize(("mcr", "msr"), [(1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80), (15, 0xF0)])
def test_loopback_modem_lines(com: Wired, mcr: int, msr: int) -> None:
    com.outb(MCR, 0x10 | mcr)
    assert com.inb(MSR) & 0xF0 == msr


def test_modem_deltas_are_cleared_by_reading(com: Wired) -> None:
    com.outb(MCR, 0x10)
    com.inb(MSR)
    com.outb(IER, 8)
    com.outb(MCR, 0x12)
    assert com.inb(IIR_FCR) & 0x0F == 0x00
    assert com.inb(MSR) & 0x0F == 1
    assert com.inb(MSR) & 0x0F == 0
    assert com.inb(IIR_FCR) & 0x0F == 0x01


def test_overrun_in_loopback(com: Wired) -> None:
    com.outb(IIR_FCR, FCR_ENABLE)
    com.outb(MCR, 0x10)
    for byte in range(17):
        com.outb(RBR_THR, byte)
    assert com.inb(LSR) & 2
    assert not com.inb(LSR) & 2  # reading clears it
    assert [com.inb(RBR_THR) for _ in range(16)] == list(range(16))
    assert not com.inb(LSR) & 1


def test_break_in_loopback(com: Wired) -> None:
    com.outb(MCR, 0x10)
    com.outb(IER, 4)
    com.outb(LCR, 0x43)
    assert com.inb(IIR_FCR) & 0x0F == 0x06
    assert com.inb(LSR) & 0x11 == 0x11


def test_fifo_reset_loses_nothing_that_came_from_outside(com: Wired) -> None:
    com.receive(b"hello")
    com.outb(LCR, 0x83)  # a driver begins its set-up
    com.outb(LCR, 3)
    com.outb(IIR_FCR, 7)
    assert not com.inb(LSR) & 1
    com.inb(RBR_THR)  # and throws away what it finds
    com.outb(IER, 1)
    assert bytes(com.inb(RBR_THR) for _ in range(5)) == b"hello"


def test_loopback_test_of_a_driver_loses_no_input(com: Wired) -> None:
    com.outb(LCR, 3)
    com.outb(MCR, 2)
    com.receive(b"hey")
    com.outb(MCR, 0x12)
    com.outb(RBR_THR, 0x55)
    assert com.inb(RBR_THR) == 0x55
    com.outb(MCR, 2)
    assert bytes(com.inb(RBR_THR) for _ in range(3)) == b"hey"


def test_flow_control_toward_the_sender(com: Wired) -> None:
    com.receive(b"x" * uart.WAITING_MAX)
    room = com.input_room
    com.receive(b"y" * room)
    assert com.input_room == 0
    com.inb(RBR_THR)
    assert com.input_room == 1


def test_busy_line_clears_thre_and_holds_its_interrupt(com: Wired) -> None:
    com.outb(IER, 2)
    com.set_line_busy(True)
    assert com.inb(LSR) & 0x60 == 0
    assert not com.line
    com.set_line_busy(False)
    assert com.inb(LSR) & 0x60 == 0x60
    assert com.line


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("out"), st.integers(0, 7), st.integers(0, 255)),
        st.tuples(st.just("in"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("receive"), st.integers(1, 40), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_any_sequence_keeps_the_promises(steps: list[tuple[str, int, int]]) -> None:
    com = Wired()
    for step, first, second in steps:
        if step == "out":
            com.outb(first, second)
        elif step == "in":
            assert 0 <= com.inb(first) <= 0xFF
        elif com.input_room >= first:
            com.receive(bytes(first))
        if com.shadow is not None:
            assert com.shadow == com.read(LSR, 1)
        # IIR bit 0 and the line say the same (IIR_MODEM is 0 with bit 0 clear).
        assert com.line == (com._pending() & 1 == 0)
        assert com.edges == [bool((i + 1) % 2) for i in range(len(com.edges))]
