"""lapic.c, ipi.c, lapic_timer.c: the local APIC, against a small obvious model and the SDM."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switcher import binding
from tests.helpers.block import TSC_KHZ, Block, Processes

Make = Callable[..., Block]

ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = (
    0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0,
)  # fmt: skip
ISR, TMR, IRR, ESR, CMCI, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x2F0, 0x300, 0x310
TIMER, THERMAL, PERF, LINT0, LINT1, ERROR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
LVTS = (TIMER, THERMAL, PERF, LINT0, LINT1, ERROR, CMCI)
MASKED, PERIODIC, DEADLINE = 1 << 16, 1 << 17, 2 << 17
FIXED, LOWEST, SMI, NMI, INIT, SIPI, EXTINT = 0, 1, 2, 4, 5, 6, 7
SEND_ILLEGAL, RECEIVE_ILLEGAL, REGISTER_ILLEGAL = 0x20, 0x40, 0x80
APIC_BASE, TSC_DEADLINE = 0x1B, 0x6E0


class Apic:
    """One vCPU's local APIC by register names' offsets."""

    def __init__(self, block: Block, index: int = 0, enable: bool = True) -> None:
        self.block, self.index = block, index
        if enable:
            self[SVR] = 0x1FF

    def __getitem__(self, offset: int) -> int:
        return self.block.lapic_read(self.index, offset)

    def __setitem__(self, offset: int, value: int) -> None:
        self.block.lapic_write(self.index, offset, value & 0xFFFFFFFF)

    def vectors(self, window: int) -> set[int]:
        words = [self[window + word * 16] for word in range(8)]
        return {i for i in range(256) if words[i // 32] and words[i // 32] >> i % 32 & 1}

    def accept(self, vector: int, level: int = 0) -> int:
        """A device's message to this APIC alone."""
        return self.block.deliver(self[ID] >> 24, 0, FIXED, vector, level)

    @property
    def pending(self) -> int:
        return self.block.lapic_pending(self.index)

    def ack(self) -> int:
        return self.block.lapic_ack(self.index)

    def eoi(self) -> None:
        self[EOI] = 0

    def errors(self) -> int:
        self[ESR] = 0
        return self[ESR]

    def events(self) -> int:
        events = self.block.v(self.index).events
        self.block.v(self.index).events = 0
        return events

    def msr(self, number: int) -> int:
        fault = binding.ffi.new("int *")
        value = self.block.lapic_msr_read(self.index, number, fault)
        if fault[0]:
            raise GeneralProtection
        return value

    def set_msr(self, number: int, value: int) -> None:
        fault = binding.ffi.new("int *")
        self.block.lapic_msr_write(self.index, number, value, fault)
        if fault[0]:
            raise GeneralProtection


class GeneralProtection(Exception):
    pass


@pytest.fixture
def apics(block: Make) -> list[Apic]:
    b = block(4)
    return [Apic(b, index) for index in range(4)]


@pytest.fixture
def apic(apics: list[Apic]) -> Apic:
    return apics[0]


# ---- priorities, against a model --------------------------------------------------------------


class Model:
    """IRR, ISR, TMR and priorities, as chapter 11 says it in words."""

    def __init__(self) -> None:
        self.irr: set[int] = set()
        self.isr: set[int] = set()
        self.tmr: set[int] = set()
        self.tpr = 0
        self.eois: list[int] = []

    @property
    def ppr(self) -> int:
        in_service = max(self.isr, default=0) // 16
        return self.tpr if self.tpr // 16 >= in_service else in_service * 16

    @property
    def pending(self) -> int:
        vector = max(self.irr, default=-1)
        return vector if vector // 16 > self.ppr // 16 else -1

    def accept(self, vector: int, level: int) -> None:
        if vector >= 16:
            self.irr.add(vector)
            (self.tmr.add if level else self.tmr.discard)(vector)

    def ack(self) -> int:
        vector = self.pending
        if vector < 0:
            return 0xFF
        self.irr.remove(vector)
        self.isr.add(vector)
        return vector

    def eoi(self) -> None:
        if self.isr:
            vector = max(self.isr)
            self.isr.remove(vector)
            if vector in self.tmr:
                self.eois.append(vector)


STEP = st.one_of(
    st.tuples(st.just("accept"), st.integers(0, 255), st.booleans()),
    st.tuples(st.just("tpr"), st.integers(0, 255)),
    st.tuples(st.just("ack")),
    st.tuples(st.just("eoi")),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_priorities_are_the_models(lib: Any, steps: list[tuple[Any, ...]]) -> None:
    b = Block(lib, 1)
    apic, model = Apic(b), Model()
    for step in steps:
        match step:
            case ("accept", vector, level):
                assert apic.accept(vector, level) == (vector >= 16)
                model.accept(vector, level)
            case ("tpr", value):
                apic[TPR] = value
                model.tpr = value
            case ("ack",):
                assert apic.ack() == model.ack()
            case ("eoi",):
                apic.eoi()
                model.eoi()
        assert apic.pending == model.pending
        assert apic[TPR] == model.tpr
        assert apic[PPR] == model.ppr
        assert apic.vectors(IRR) == model.irr
        assert apic.vectors(ISR) == model.isr
        assert apic.vectors(TMR) == model.tmr
    eois = []
    while entry := b.take():
        assert entry[:2] == (binding.SMP_POST_EOI, 0)
        eois.append(entry[2])
    assert eois == model.eois


OFFSET = st.one_of(st.integers(0, 0x400).map(lambda n: n & ~15), st.integers(0, 0xFFFFFFFF))
VALUE = st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 1, 0x1FF, 0xFFFFFFFF]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("rwmpat"), OFFSET, VALUE), min_size=1, max_size=60),
    st.integers(1, 16),
)
def test_a_hostile_guest_harms_nothing(
    lib: Any, steps: list[tuple[str, int, int]], vcpus: int
) -> None:
    """Anything may be written anywhere; registers keep only bits that exist."""
    b = Block(lib, vcpus)
    apics = [Apic(b, index) for index in range(vcpus)]
    for what, offset, value in steps:
        apic = apics[value % vcpus]
        try:
            match what:
                case "r":
                    _ = apic[offset]
                case "w":
                    apic[offset] = value
                case "m":
                    apic.set_msr((APIC_BASE, TSC_DEADLINE, offset)[value % 3], value << 20 | value)
                case "p":
                    b.deliver(value, offset & 1, offset >> 4 & 7, offset >> 8, value >> 8)
                case "a":
                    apic.ack()
                case "t":
                    b.lapic_timer_event(apic.index)
        except GeneralProtection:
            pass
    for index, apic in enumerate(apics):
        lapic = b.l(index)
        assert lapic.id == index << 24
        assert lapic.tpr <= 0xFF
        assert lapic.svr <= 0x1FF
        assert lapic.icr_low & ~0xCCFFF == 0
        assert lapic.timer_divide & ~0xB == 0
        assert lapic.apic_base & ~(1 << 11) == 0xFEE00000 | (0x100 if index == 0 else 0)
        assert not apic.vectors(IRR) & set(range(16)) or lapic.apic_base & 0x800 == 0
        assert b.lapic_pending(index) < 256
        lapic.apic_base |= 0x800
        assert apic[CURRENT] <= max(apic[INITIAL], 0)
        if not lapic.svr & 0x100:
            assert all(apic[lvt] & MASKED for lvt in LVTS)


# ---- registers --------------------------------------------------------------------------------


def test_power_on(block: Make) -> None:
    for index in range(2):
        apic = Apic(block(2), index, enable=False)
        assert apic[ID] == index << 24
        assert apic[VERSION] == 0x00060014
        assert apic[SVR] == 0xFF
        assert apic[DFR] == 0xFFFFFFFF
        assert [apic[lvt] for lvt in LVTS] == [MASKED] * 7
        for register in (TPR, APR, PPR, EOI, LDR, ESR, ICR_LOW, ICR_HIGH, INITIAL, CURRENT, DIVIDE):
            assert apic[register] == 0
        assert apic.pending == -1
        assert apic.block.l(index).wait_sipi == (index != 0)


@pytest.mark.parametrize(
    ("register", "writable", "fixed"),
    [
        (ID, 0, 0), (VERSION, 0, 0x60014), (TPR, 0xFF, 0), (PPR, 0, 0), (APR, 0, 0), (ISR, 0, 0),
        (TMR, 0, 0), (IRR, 0, 0), (LDR, 0xFF000000, 0), (DFR, 0xF0000000, 0x0FFFFFFF),
        (ICR_HIGH, 0xFF000000, 0), (CURRENT, 0, 0), (DIVIDE, 0xB, 0), (TIMER, 0x700FF, 0),
        (THERMAL, 0x107FF, 0), (PERF, 0x107FF, 0), (LINT0, 0x1A7FF, 0), (LINT1, 0x1A7FF, 0),
        (ERROR, 0x100FF, 0), (CMCI, 0x107FF, 0), (0xC0, 0, 0),
    ],
)  # fmt: skip
def test_only_bits_that_exist_are_kept(
    apic: Apic, register: int, writable: int, fixed: int
) -> None:
    for value in (0xFFFFFFFF, 0, 0xAAAAAAAA, 0x55555555):
        apic[register] = value
        expected = value & writable | fixed
        if register in (PPR, APR):
            expected = apic[TPR]
        assert apic[register] == expected, hex(value)
    assert apic.errors() == 0


def test_svr_keeps_nine_bits(apic: Apic) -> None:
    apic[SVR] = 0xFFFFFFFF
    assert apic[SVR] == 0x1FF


def test_unaligned_registers_read_nothing(apic: Apic) -> None:
    apic[TPR] = 0x50
    for offset in (0x81, 0x84, 0x8F, 0x324):
        apic[offset] = 0xFF
        assert apic[offset] == 0
    assert apic[TPR] == 0x50
    assert apic.errors() == 0


def test_tpr_through_cr8(apic: Apic) -> None:
    apic.block.lapic_set_tpr(0, 0xF0)
    assert apic[TPR] == 0xF0
    apic[TPR] = 0x34
    assert apic.block.lapic_tpr(0) == 0x34


def test_the_spurious_vector_enters_no_isr_bit(apic: Apic) -> None:
    apic[SVR] = 0x1EF
    apic.accept(0x50)
    apic[TPR] = 0x50
    assert apic.ack() == 0xEF
    assert apic.vectors(ISR) == set()
    assert apic.vectors(IRR) == {0x50}
    assert apic.block.v(0).counters.interrupts == 0


def test_eoi_without_interrupt_does_nothing(apic: Apic) -> None:
    apic.eoi()
    assert apic.block.take() is None


def test_only_level_triggered_interrupts_tell_the_host_of_eoi(apic: Apic) -> None:
    for level in (1, 0):
        apic.accept(0x60, level)
        assert apic.ack() == 0x60
        apic.eoi()
        posted = apic.block.take()
        assert (posted is not None) == bool(level)
        if posted:
            assert posted[2] == 0x60


# ---- software and hardware disable ----------------------------------------------------------


def test_software_disable_masks_the_lvts_for_good(apic: Apic) -> None:
    for lvt in LVTS:
        apic[lvt] = 0x40
        assert apic[lvt] == 0x40
    apic[SVR] = 0xFF
    assert all(apic[lvt] == MASKED | 0x40 for lvt in LVTS)
    apic[TIMER] = 0x41
    assert apic[TIMER] == MASKED | 0x41
    apic[SVR] = 0x1FF
    assert apic[TIMER] == MASKED | 0x41
    apic[TIMER] = 0x41
    assert apic[TIMER] == 0x41


def test_a_software_disabled_apic_takes_no_fixed_interrupts(apics: list[Apic]) -> None:
    apic, other = apics[:2]
    apic.accept(0x50)
    apic[SVR] = 0xFF
    assert apic.accept(0x60) == 0
    assert apic.pending == 0x50, "what was accepted is held"
    for delivery, event in ((NMI, 1), (INIT, 2), (SIPI, 4)):
        assert apic.block.deliver(0, 0, delivery, 8, 0) == 1
        assert apic.events() & event
    apic[ICR_HIGH] = 1 << 24
    apic[ICR_LOW] = 0x70  # it can still send
    assert other.pending == 0x70


def test_apic_base(apics: list[Apic]) -> None:
    bsp, ap = apics[:2]
    assert bsp.msr(APIC_BASE) == 0xFEE00900
    assert ap.msr(APIC_BASE) == 0xFEE00800
    for bad in (0xFEE00C00, 0xFED00800, 0xFEE00801, 1 << 36 | 0xFEE00800, 0, 0xFEE00A00):
        with pytest.raises(GeneralProtection):
            bsp.set_msr(APIC_BASE, bad)
    ap.set_msr(APIC_BASE, 0xFEE00900)
    assert ap.msr(APIC_BASE) == 0xFEE00800, "nobody becomes the BSP"
    with pytest.raises(GeneralProtection):
        bsp.msr(0x10)
    with pytest.raises(GeneralProtection):
        bsp.set_msr(0x10, 0)


def test_a_hardware_disabled_apic_is_not_there(apics: list[Apic]) -> None:
    apic = apics[1]
    apic.accept(0x50)
    apic[TIMER] = 0x40
    apic.set_msr(APIC_BASE, 0xFEE00000)
    assert apic.pending == -1
    assert apic[TPR] == 0xFFFFFFFF
    apic[TPR] = 5
    for delivery in (FIXED, NMI, INIT, SIPI):
        assert apic.block.deliver(1, 0, delivery, 0x50, 0) == 0
    apic.set_msr(APIC_BASE, 0xFEE00800)
    assert apic[ID] == 1 << 24
    assert (apic[SVR], apic[TPR], apic[TIMER]) == (0xFF, 0, MASKED)
    assert apic.pending == -1


def test_init_keeps_the_id_and_the_base(apics: list[Apic]) -> None:
    apic = apics[1]
    apic.accept(0x50)
    apic[TPR], apic[LDR], apic[DFR] = 0x30, 0x02000000, 0
    apic.block.lapic_reset(1, 0)
    assert apic[ID] == 1 << 24
    assert apic.msr(APIC_BASE) == 0xFEE00800
    assert (apic[TPR], apic[LDR], apic[DFR], apic[SVR]) == (0, 0, 0xFFFFFFFF, 0xFF)
    assert apic.vectors(IRR) == set()
    assert apic.block.l(1).wait_sipi == 1


# ---- errors -----------------------------------------------------------------------------------


def test_esr_is_written_then_read(apic: Apic) -> None:
    apic[ICR_LOW] = 0x0F
    assert apic[ESR] == 0, "not latched yet"
    apic[ESR] = 0xFFFFFFFF
    assert apic[ESR] == SEND_ILLEGAL
    assert apic[ESR] == SEND_ILLEGAL
    apic[ESR] = 0
    assert apic[ESR] == 0


def test_what_is_an_error(apics: list[Apic]) -> None:
    apic, other = apics[:2]
    _ = apic[0x40]
    assert apic.errors() == REGISTER_ILLEGAL
    apic[0x3F0] = 1
    assert apic.errors() == REGISTER_ILLEGAL
    other.accept(5)
    assert other.errors() == RECEIVE_ILLEGAL
    for mode in (FIXED, LOWEST):
        apic[ICR_HIGH] = 1 << 24
        apic[ICR_LOW] = mode << 8 | 3
        assert apic.errors() == SEND_ILLEGAL
        assert other.errors() == 0, "it is not sent"
    for mode in (NMI, INIT, SIPI):
        apic[ICR_LOW] = mode << 8 | 3
        assert apic.errors() == 0


def test_an_error_interrupts_once_until_esr_is_written(apic: Apic) -> None:
    apic[ERROR] = 0x33
    _ = apic[0x40]
    assert apic.ack() == 0x33
    apic.eoi()
    apic[ICR_LOW] = 1
    assert apic.pending == -1
    assert apic.errors() == REGISTER_ILLEGAL | SEND_ILLEGAL
    _ = apic[0x40]
    assert apic.pending == 0x33


def test_an_illegal_error_vector_ends(apic: Apic) -> None:
    apic[ERROR] = 0x03
    _ = apic[0x40]
    assert apic.errors() == REGISTER_ILLEGAL | RECEIVE_ILLEGAL
    assert apic.pending == -1


# ---- interprocessor interrupts ------------------------------------------------------------------


def takers(apics: list[Apic], vector: int) -> list[int]:
    found = [apic.index for apic in apics if vector in apic.vectors(IRR)]
    for index in found:
        apics[index].ack()
        apics[index].eoi()
    return found


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0x00000, 2, [2]), (0x00000, 0, [0]), (0x00000, 9, []), (0x00000, 0xFF, [0, 1, 2, 3]),
        (0x40000, 2, [0]), (0x80000, 2, [0, 1, 2, 3]), (0xC0000, 2, [1, 2, 3]),
        (0x0C000, 1, [1]),  # level and trigger mode mean nothing for fixed
    ],
)  # fmt: skip
def test_shorthands_and_physical_destinations(
    apics: list[Apic], low: int, high: int, expected: list[int]
) -> None:
    apics[0][ICR_HIGH] = high << 24
    apics[0][ICR_LOW] = low | 0x80
    assert takers(apics, 0x80) == expected
    assert apics[0][ICR_LOW] == low | 0x80
    assert apics[0].block.v(0).counters.ipis_sent == 1
    assert all(not apic.vectors(TMR) for apic in apics)


def test_logical_flat(apics: list[Apic]) -> None:
    for apic in apics:
        apic[LDR] = 1 << (24 + apic.index)
    for mda in range(256):
        apics[1][ICR_HIGH] = mda << 24
        apics[1][ICR_LOW] = 0x880
        expected = [0, 1, 2, 3] if mda == 0xFF else [i for i in range(4) if mda >> i & 1]
        assert takers(apics, 0x80) == expected


def test_logical_cluster(apics: list[Apic]) -> None:
    for apic in apics:  # two clusters of two
        apic[DFR] = 0x0FFFFFFF
        apic[LDR] = (apic.index // 2) << 28 | 1 << (24 + apic.index % 2)
    for mda in range(256):
        apics[0][ICR_HIGH] = mda << 24
        apics[0][ICR_LOW] = 0x880
        expected = [i for i in range(4) if mda >> 4 == i // 2 and mda >> (i % 2) & 1]
        assert takers(apics, 0x80) == ([0, 1, 2, 3] if mda == 0xFF else expected)


def test_no_logical_id_no_match(apics: list[Apic]) -> None:
    assert apics[0].block.deliver(0x0F, 1, FIXED, 0x40, 0) == 0
    apics[2][LDR], apics[2][DFR] = 0x04000000, 0x30000000  # a model that does not exist
    assert apics[0].block.deliver(0x04, 1, FIXED, 0x40, 0) == 0


def test_lowest_priority_takes_turns(apics: list[Apic]) -> None:
    for apic in apics:
        apic[LDR] = 1 << (24 + apic.index)
    apics[2][SVR] = 0xFF
    seen = []
    for _ in range(9):
        assert apics[0].block.deliver(0x0F, 1, LOWEST, 0x40, 0) == 1
        seen += takers(apics, 0x40)
    assert sorted(seen) == [0, 0, 0, 1, 1, 1, 3, 3, 3]
    assert apics[0].block.deliver(0x04, 1, LOWEST, 0x40, 0) == 0


def test_nmi_init_sipi(apics: list[Apic]) -> None:
    b, sender, target = apics[0].block, apics[0], apics[1]
    sender[ICR_HIGH] = 1 << 24
    for low, event in ((0x4400, 1), (0x4500, 2), (0xC500, 2), (0x0500, 2), (0x4608, 4)):
        sender[ICR_LOW] = low
        assert target.events() == event, hex(low)
    assert b.l(1).sipi_vector == 8
    sender[ICR_LOW] = 0x8500  # INIT level de-assert
    assert target.events() == 0
    for low in (0x4200, 0x4300, 0x4700):  # SMI, reserved, ExtINT
        sender[ICR_LOW] = low
        assert target.events() == 0
    sender[ICR_LOW] = 0xC4400
    assert [apic.events() for apic in apics] == [0, 1, 1, 1]


def test_init_cancels_a_sipi_before_it_but_not_after(apics: list[Apic]) -> None:
    b = apics[0].block
    b.deliver(1, 0, SIPI, 8, 0)
    b.deliver(1, 0, INIT, 0, 0)
    assert b.v(1).events == binding.SMP_EVENT_INIT
    b.deliver(1, 0, SIPI, 9, 0)
    b.deliver(1, 0, SIPI, 10, 0)
    assert apics[1].events() == binding.SMP_EVENT_INIT | binding.SMP_EVENT_SIPI
    assert b.l(1).sipi_vector == 9, "the first of two"


def test_parallel_senders_lose_nothing(block: Make, processes: Processes) -> None:
    b = block(2)
    apic, rounds = Apic(b), 400
    # The same words of IRR and TMR from both, so that a plain store would lose bits.
    vectors = [range(64, 96, 2), range(65, 96, 2)]

    def sender(mine: range) -> None:
        mask = sum(1 << vector % 32 for vector in mine)
        for _ in range(rounds):
            for vector in mine:
                assert b.deliver(0, 0, FIXED, vector, vector & 1) == 1
            while b.l(0).irr[2] & mask:
                os.sched_yield()

    for mine in vectors:
        processes.fork(lambda mine=mine: sender(mine))
    taken = {vector: 0 for mine in vectors for vector in mine}
    deadline = time.monotonic() + 60
    while min(taken.values()) < rounds and time.monotonic() < deadline:
        if apic.pending >= 0:
            vector = apic.ack()
            taken[vector] += 1
            assert b.l(0).tmr[2] >> vector % 32 & 1 == vector & 1
            apic.eoi()
            b.take()
    assert set(taken.values()) == {rounds}
    assert processes.join() == [0, 0]


# ---- the timer --------------------------------------------------------------------------------

MS = 1_000_000


@pytest.fixture
def timer(apic: Apic) -> Iterator[Apic]:
    """vCPU 0 is this thread: its host timer runs."""
    assert apic.block.timer_start(0) == 0
    yield apic
    apic.block.lib.smp_timer_stop()


def serve(apic: Apic, ns: int, enough: int = 1 << 30) -> list[int]:
    """Be the vCPU for so long, or until `enough` timer interrupts; when each of them came."""
    b, times = apic.block, []
    end = time.monotonic_ns() + ns
    while (left := end - time.monotonic_ns()) > 0 and len(times) < enough:
        b.sleep(apic.index, left)
        if apic.events() & binding.SMP_EVENT_TIMER:
            b.lapic_timer_event(apic.index)
        while apic.pending >= 0:
            apic.ack()
            times.append(time.monotonic_ns())
            apic.eoi()
    return times


@pytest.mark.parametrize(
    ("code", "divisor"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)],
)
def test_one_shot_counts_nanoseconds_times_the_divisor(
    timer: Apic, code: int, divisor: int
) -> None:
    timer[TIMER] = 0x40
    timer[DIVIDE] = code
    begun = time.monotonic_ns()
    timer[INITIAL] = 20 * MS // divisor
    first = timer[CURRENT]
    gone = time.monotonic_ns() - begun
    assert (20 * MS - gone) // divisor <= first <= 20 * MS // divisor
    times = serve(timer, 20_000 * MS, 1)
    assert times[0] - begun >= 20 * MS - divisor
    assert serve(timer, 20 * MS) == []
    assert timer[CURRENT] == 0
    assert timer[INITIAL] == 20 * MS // divisor
    assert timer.block.v(0).counters.timer_fires == 1


def test_periodic_neither_drifts_nor_piles_up(timer: Apic) -> None:
    timer[DIVIDE] = 0xB
    timer[TIMER] = PERIODIC | 0x40
    begun = time.monotonic_ns()
    timer[INITIAL] = 2 * MS
    grid = timer.block.l(0).timer_deadline_ns % (2 * MS)
    times = serve(timer, 60_000 * MS, 20)
    time.sleep(0.02)  # the vCPU is away for ten periods
    times += serve(timer, 60_000 * MS, 20)
    elapsed = time.monotonic_ns() - begun
    assert 40 <= len(times) <= elapsed // (2 * MS) - 8
    assert timer.block.l(0).timer_deadline_ns % (2 * MS) == grid
    assert all(timer[CURRENT] <= 2 * MS for _ in range(1000))


def test_a_hostile_period_leaves_the_guest_its_time(timer: Apic) -> None:
    timer[DIVIDE] = 0xB
    timer[TIMER] = PERIODIC | 0x40
    timer[INITIAL] = 1
    begun = time.monotonic_ns()
    times = serve(timer, 100 * MS)
    assert len(times) <= (time.monotonic_ns() - begun) // 20_000 + 1
    assert timer.block.l(0).timer_deadline_ns - time.monotonic_ns() <= 30_000
    assert timer[CURRENT] <= 1


def test_the_next_expiry_is_never_just_ahead(apic: Apic) -> None:
    apic[DIVIDE] = 0xB
    apic[TIMER] = PERIODIC | MASKED | 0x40
    for count in (1, 19_999, 20_000, 20_001, 25_000):
        apic[INITIAL] = count
        lapic = apic.block.l(0)
        assert lapic.timer_deadline_ns - lapic.timer_start_ns == max(count, 20_000)
        for _ in range(200):
            while (before := time.monotonic_ns()) < lapic.timer_deadline_ns:
                pass
            apic.block.lapic_timer_event(0)
            assert lapic.timer_deadline_ns >= before + 10_000
            assert lapic.timer_deadline_ns - lapic.timer_start_ns == max(count, 20_000)


def test_a_masked_timer_counts_in_silence(timer: Apic) -> None:
    timer[TIMER] = MASKED | 0x40
    timer[INITIAL] = MS
    time.sleep(0.002)
    assert serve(timer, 20 * MS) == []
    assert timer.block.v(0).counters.timer_fires == 1


def test_zero_stops_the_timer(timer: Apic) -> None:
    timer[TIMER] = PERIODIC | 0x40
    timer[INITIAL] = MS
    assert serve(timer, 20_000 * MS, 1)
    timer[INITIAL] = 0
    timer.events()
    assert serve(timer, 20 * MS) == []
    assert timer[CURRENT] == 0


def test_a_new_divisor_counts_the_rest(timer: Apic) -> None:
    timer[TIMER] = 0x40
    timer[DIVIDE] = 0xB
    timer[INITIAL] = 0xFFFFFFFF
    before = timer[CURRENT]
    timer[DIVIDE] = 0xA
    after = timer[CURRENT]
    assert before - 2000 * MS < after <= before
    left = timer.block.l(0).timer_deadline_ns - time.monotonic_ns()
    assert left > 127 * (before - 2000 * MS)


def test_tsc_deadline(timer: Apic) -> None:
    timer[TIMER] = DEADLINE | 0x40
    tsc_now = timer.block.guest_tsc
    real_khz = measure_tsc_khz(timer.block)
    timer.block.c.tsc_khz = real_khz
    deadline = tsc_now() + 20 * real_khz
    timer.set_msr(TSC_DEADLINE, deadline)
    assert timer.msr(TSC_DEADLINE) == deadline
    end = time.monotonic() + 5
    while timer.pending < 0:
        assert time.monotonic() < end
        timer.block.sleep(0, MS)
        if timer.events():
            timer.block.lapic_timer_event(0)
            assert timer.pending < 0 or tsc_now() >= deadline
    assert timer.ack() == 0x40
    assert timer.msr(TSC_DEADLINE) == 0


def test_the_tsc_has_the_last_word(apic: Apic) -> None:
    """The host's clock says it is time, the TSC does not yet: no interrupt, a new wait."""
    apic[TIMER] = DEADLINE | 0x40
    apic.block.c.tsc_khz = 1 << 40  # so the wait comes out far too short
    apic.set_msr(TSC_DEADLINE, apic.block.guest_tsc() + (1 << 40))
    armed = apic.block.l(0).timer_deadline_ns
    while time.monotonic_ns() <= armed:
        pass
    apic.block.lapic_timer_event(0)
    assert apic.pending == -1
    assert apic.block.l(0).timer_deadline_ns > armed
    assert apic.msr(TSC_DEADLINE)


def measure_tsc_khz(b: Block) -> int:
    tsc, now = b.guest_tsc(), time.monotonic_ns()
    time.sleep(0.05)
    return (b.guest_tsc() - tsc) * MS // (time.monotonic_ns() - now)


def test_a_deadline_in_the_past_fires_at_once(apic: Apic) -> None:
    apic[TIMER] = DEADLINE | 0x40
    apic.set_msr(TSC_DEADLINE, 1)
    assert apic.pending == 0x40
    assert apic.msr(TSC_DEADLINE) == 0


def test_a_far_deadline_and_a_broken_frequency(apic: Apic) -> None:
    apic[TIMER] = DEADLINE | 0x40
    for khz in (TSC_KHZ, 1, 0, 2**63):
        apic.block.c.tsc_khz = khz
        apic.set_msr(TSC_DEADLINE, 2**64 - 1)
        assert apic.pending == -1
        assert apic.block.l(0).timer_deadline_ns > time.monotonic_ns()
    apic.set_msr(TSC_DEADLINE, 0)
    assert apic.block.l(0).timer_deadline_ns == 0


def test_the_modes_keep_apart(apic: Apic) -> None:
    apic[TIMER] = 0x40
    apic.set_msr(TSC_DEADLINE, 1)
    assert apic.pending == -1
    assert apic.msr(TSC_DEADLINE) == 0
    apic[INITIAL] = 1000 * MS
    assert apic.block.l(0).timer_deadline_ns
    apic[TIMER] = PERIODIC | 0x40
    assert apic.block.l(0).timer_deadline_ns, "between one-shot and periodic the count goes on"
    apic[TIMER] = DEADLINE | 0x40
    assert apic.block.l(0).timer_deadline_ns == 0
    assert (apic[INITIAL], apic[CURRENT]) == (0, 0)
    apic[INITIAL] = 5
    assert apic[INITIAL] == 0
    apic.set_msr(TSC_DEADLINE, 2**60)
    apic[TIMER] = 0x40
    assert apic.block.l(0).timer_deadline_ns == 0
    apic[TIMER] = DEADLINE | PERIODIC | 0x40  # reserved
    apic[INITIAL] = 5
    assert apic.block.l(0).timer_deadline_ns == 0


def test_an_early_or_stray_event_is_harmless(apic: Apic) -> None:
    apic.block.lapic_timer_event(0)
    apic[TIMER] = 0x40
    apic[INITIAL] = 0xFFFFFFFF
    apic.block.lapic_timer_event(0)
    assert apic.pending == -1
    assert apic.block.v(0).counters.timer_fires == 0


def test_an_illegal_timer_vector_is_an_error(timer: Apic) -> None:
    timer[TIMER] = 0x05
    timer[INITIAL] = 1000
    time.sleep(0.001)
    assert serve(timer, 5 * MS) == []
    assert timer.errors() == RECEIVE_ILLEGAL


@pytest.mark.parametrize("register", [SVR, LDR, DFR])
def test_an_apic_that_may_take_more_tells_the_ioapic_when_it_waits(
    block: Make, register: int
) -> None:
    b = block(2)
    apic = Apic(b, 1, enable=False)
    apic[register] = 0x1FF
    assert b.take() is None
    b.want_taker(1)
    apic[register] = 0x1FF
    assert b.take() == (binding.SMP_POST_TAKER, 1, 0, 0)
    b.want_taker(0)
    apic[register] = 0x1FF
    assert b.take() is None
