"""The I/O APIC: redirection, masks, edge, level with remote IRR and EOI."""

from __future__ import annotations

import pytest

from runtime.devices.ioapic import IoApic
from runtime.devices.irq import isa_line

LEVEL, MASKED, LOGICAL, REMOTE_IRR = 1 << 15, 1 << 16, 1 << 11, 1 << 14


class Wired(IoApic):
    """Records its messages; `takers` is how many vCPUs take each."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bool, int, int, bool]] = []
        self.takers = 1
        self.late_takers = 0  # found once it is known that somebody is wanted
        self.wanted = False
        super().__init__(self.take, self.want, apic_id=3)

    def want(self, wanted: bool) -> None:
        self.wanted = wanted
        self.takers = self.takers or (self.late_takers if wanted else 0)

    def take(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> int:
        self.sent.append((destination, logical, mode, vector, level))
        return self.takers

    def get(self, register: int) -> int:
        self.write(0, 4, register)
        return self.read(0x10, 4)

    def set(self, register: int, value: int) -> None:
        self.write(0, 4, register)
        self.write(0x10, 4, value)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        self.set(0x11 + 2 * pin, destination << 24)
        self.set(0x10 + 2 * pin, low)


@pytest.fixture
def apic() -> Wired:
    return Wired()


def test_identity(apic: Wired) -> None:
    assert apic.get(0) == 3 << 24
    assert apic.get(1) == 0x00170011
    assert all(apic.get(0x10 + 2 * pin) == MASKED for pin in range(24))
    assert apic.get(0x40) == 0
    apic.set(0, 0xFFFFFFFF)
    assert apic.get(0) == 0x0F000000


def test_read_only_bits(apic: Wired) -> None:
    apic.route(5, 0xFFFFFFFF & ~MASKED, 0xFF)
    assert apic.get(0x1A) == 0xAFFF  # delivery status and remote IRR stay clear
    assert apic.get(0x1B) == 0xFF000000


def test_edge(apic: Wired) -> None:
    apic.route(4, 0x24, destination=2)
    apic.set_line(4, True)
    apic.set_line(4, True)
    apic.set_line(4, False)
    apic.set_line(4, True)
    assert apic.sent == [(2, False, 0, 0x24, False)] * 2


def test_masked_edge_is_ignored(apic: Wired) -> None:
    apic.route(4, 0x24 | MASKED)
    apic.set_line(4, True)
    apic.route(4, 0x24)
    assert apic.sent == []


def test_level_is_sent_once_until_eoi(apic: Wired) -> None:
    apic.route(9, 0x29 | LEVEL)
    apic.set_line(9, True)
    apic.set_line(9, True)
    assert len(apic.sent) == 1
    assert apic.get(0x22) & REMOTE_IRR
    apic.eoi(0x28)
    assert len(apic.sent) == 1
    apic.eoi(0x29)  # still asserted: again
    assert len(apic.sent) == 2
    apic.set_line(9, False)
    apic.eoi(0x29)
    assert len(apic.sent) == 2
    assert not apic.get(0x22) & REMOTE_IRR


def test_masked_level_is_sent_when_unmasked(apic: Wired) -> None:
    apic.route(9, 0x29 | LEVEL | MASKED)
    apic.set_line(9, True)
    assert apic.sent == []
    apic.route(9, 0x29 | LEVEL)
    assert len(apic.sent) == 1


def test_level_that_nobody_took_is_not_waited_for(apic: Wired) -> None:
    apic.takers = 0
    apic.route(9, 0x29 | LEVEL)
    apic.set_line(9, True)
    assert not apic.get(0x22) & REMOTE_IRR
    assert apic.wanted


def test_level_that_nobody_took_is_sent_when_somebody_can(apic: Wired) -> None:
    apic.takers = 0
    apic.route(9, 0x29 | LEVEL)
    apic.set_line(9, True)
    apic.retry()
    assert apic.wanted  # still
    apic.takers = 1
    apic.sent.clear()
    apic.retry()
    assert len(apic.sent) == 1
    assert apic.get(0x22) & REMOTE_IRR
    assert not apic.wanted


def test_a_taker_that_came_before_it_could_know(apic: Wired) -> None:
    apic.takers, apic.late_takers = 0, 1
    apic.route(9, 0x29 | LEVEL)
    apic.set_line(9, True)
    assert apic.get(0x22) & REMOTE_IRR


def test_a_new_destination_is_tried_at_once(apic: Wired) -> None:
    apic.takers = 0
    apic.route(9, 0x29 | LEVEL)
    apic.set_line(9, True)
    apic.takers = 1
    apic.set(0x23, 5 << 24)
    assert apic.sent[-1] == (5, False, 0, 0x29, True)
    assert apic.get(0x22) & REMOTE_IRR


def test_switching_to_edge_drops_remote_irr(apic: Wired) -> None:
    apic.route(9, 0x29 | LEVEL)
    apic.set_line(9, True)
    apic.set(0x22, 0x29 | MASKED)
    assert not apic.get(0x22) & REMOTE_IRR


@pytest.mark.parametrize("mode", [0, 1, 4, 5])
def test_delivery_modes_reach_the_switcher(apic: Wired, mode: int) -> None:
    apic.route(1, 0x21 | mode << 8 | LOGICAL, destination=0x0F)
    apic.set_line(1, True)
    assert apic.sent == [(0x0F, True, mode, 0x21, False)]


@pytest.mark.parametrize("mode", [2, 7])
def test_smi_and_extint_go_nowhere(apic: Wired, mode: int) -> None:
    apic.route(1, 0x21 | mode << 8)
    apic.set_line(1, True)
    assert apic.sent == []


def test_isa_timer_is_on_pin_2(apic: Wired) -> None:
    apic.route(2, 0x20)
    apic.route(0, 0x99)
    isa_line(apic, 0)(True)
    assert [sent[3] for sent in apic.sent] == [0x20]
