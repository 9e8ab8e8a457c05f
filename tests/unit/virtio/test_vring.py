"""Rings: every rule of section 2.7 that a driver can break, and a driver that breaks none."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.virtio.vring import Vring, VringError, legacy_layout
from tests.helpers.virtio import INDIRECT, NEXT, WRITE, Driver, Ram, desc

NUM = 8
LAYOUT = legacy_layout(0, NUM, 64)
SIZE = 1 << 16
DATA = 0x1000


def make(indirect: bool = False, num: int = NUM) -> tuple[Ram, Vring]:
    ram = Ram(SIZE)
    layout = legacy_layout(0, num, 64)
    return ram, Vring(ram, num, layout.desc, layout.avail, layout.used, indirect=indirect)


def offer(ram: Ram, *heads: int, index: int | None = None) -> None:
    for place, head in enumerate(heads):
        ram.put(LAYOUT.avail + 4 + 2 * place, "H", head)
    ram.put(LAYOUT.avail + 2, "H", len(heads) if index is None else index)


def table(ram: Ram, *entries: bytes) -> None:
    for place, entry in enumerate(entries):
        ram.write(16 * place, entry)


# A driver that keeps the rules -------------------------------------------------------


def test_legacy_layout_is_that_of_the_specification() -> None:
    # 2.7.2: with 256 entries and an alignment of 4096, three pages less a bit.
    assert legacy_layout(0x4001000, 256, 4096) == (0x4001000, 0x4002000, 0x4003000, 0x2806)
    assert legacy_layout(0, 8, 64) == (0, 128, 192, 262)


def test_chain_is_two_streams_however_it_is_cut() -> None:
    ram, ring = make()
    ram.write(DATA, b"hello, world")
    table(
        ram,
        desc(DATA, 5, NEXT, 3),
        b"\xff" * 16,
        desc(DATA + 0x108, 4, WRITE),
        desc(0, 0, NEXT, 4),
        desc(DATA + 5, 7, NEXT, 5),
        desc(DATA + 0x100, 3, NEXT | WRITE, 2),
    )
    offer(ram, 0)
    chain = ring.pop()
    assert chain is not None
    assert (chain.head, chain.unread, chain.room) == (0, 12, 7)
    assert chain.readable == ((DATA, 5), (0, 0), (DATA + 5, 7))
    assert chain.writable == ((DATA + 0x100, 3), (DATA + 0x108, 4))
    assert [chain.read(3), chain.read(3), chain.read(100), chain.read(1)] == [
        b"hel",
        b"lo,",
        b" world",
        b"",
    ]
    status = chain.take_last_byte()
    assert status == DATA + 0x10B
    assert chain.room == 6
    assert [chain.write(b"ab"), chain.write(b"cdefgh")] == [2, 4]
    assert status is not None
    chain.write_byte(status, 0x55)
    ring.push(chain)
    assert ram.read(DATA + 0x100, 3) == b"abc"
    assert ram.read(DATA + 0x108, 4) == b"def\x55"
    assert ram.read(LAYOUT.used, 12) == struct.pack("<HHII", 0, 1, 0, 7)
    assert ring.pop() is None


def test_last_byte_is_found_before_empty_buffers() -> None:
    ram, ring = make()
    table(ram, desc(DATA, 1, NEXT | WRITE, 1), desc(DATA + 9, 0, WRITE))
    offer(ram, 0)
    chain = ring.pop()
    assert chain is not None
    assert chain.take_last_byte() == DATA
    assert chain.take_last_byte() is None
    assert chain.write(b"x") == 0


def test_indirect_table_after_direct_descriptors() -> None:
    ram, ring = make(indirect=True)
    # 2.7.5.3.2: direct ones may come first, and "writable" on the table means nothing.
    table(ram, desc(DATA, 2, NEXT, 1), desc(DATA + 0x800, 32, INDIRECT | WRITE))
    ram.write(DATA + 0x800, desc(DATA + 2, 3, NEXT, 1) + desc(DATA + 16, 4, WRITE))
    offer(ram, 0)
    chain = ring.pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == (((DATA, 2), (DATA + 2, 3)), ((DATA + 16, 4),))


@pytest.mark.parametrize(("indirect", "requests"), [(False, 66_000), (True, 5_000)])
def test_random_requests(indirect: bool, requests: int) -> None:
    """Every byte, and past the wrap of the 16-bit indices."""
    ram = Ram(1 << 18)
    num = 64
    layout = legacy_layout(0x1000, num, 4096)
    ring = Vring(ram, num, layout.desc, layout.avail, layout.used, indirect=indirect)
    driver = Driver(ram, num, layout, 0x8000, 1024, indirect=indirect)
    chance = random.Random(7)
    done = 0
    while done < requests:
        sent: dict[int, tuple[bytes, int]] = {}
        while len(driver.free) >= 5:
            pieces = [chance.randbytes(chance.randrange(24)) for _ in range(chance.randrange(3))]
            rooms = [chance.randrange(24) for _ in range(chance.randrange(3))]
            if pieces or rooms:
                request = driver.add(pieces, rooms)
                sent[request.head] = (b"".join(pieces), sum(rooms))
        answers: dict[int, bytes] = {}
        while (chain := ring.pop()) is not None:
            data, room = sent[chain.head]
            assert (chain.unread, chain.room) == (len(data), room)
            cut = chance.randrange(len(data) + 1)
            assert chain.read(cut) + chain.read(len(data)) == data
            answers[chain.head] = chance.randbytes(chance.randrange(room + 1))
            assert chain.write(answers[chain.head]) == len(answers[chain.head])
            ring.push(chain)
        while (back := driver.take()) is not None:
            answer = answers[back.head]
            assert back.written == len(answer)
            assert driver.data(back)[: len(answer)] == answer
            done += 1
        assert not driver.waiting
    assert driver.avail_index == driver.used_index == done & 0xFFFF


# Flags --------------------------------------------------------------------------------


def test_interrupts_and_notifications() -> None:
    ram, ring = make()
    assert ring.wants_interrupt
    ram.put(LAYOUT.avail, "H", 1)
    assert not ring.wants_interrupt
    ring.disable_notifications()
    assert ram.u16(LAYOUT.used) == 1
    assert ring.enable_notifications() is False
    assert ram.u16(LAYOUT.used) == 0


def test_request_that_came_before_notifications_were_on_is_seen() -> None:
    ram, ring = make()
    table(ram, desc(DATA, 1))
    ring.disable_notifications()
    assert ring.pop() is None
    offer(ram, 0)
    assert ring.enable_notifications() is True
    assert ring.pop() is not None


def test_flag_is_written_before_the_index_is_read_again() -> None:
    """The order that keeps wake-ups: the driver comes exactly between the two."""

    class Meddler(Ram):
        def write(self, address: int, data: bytes | memoryview) -> None:
            super().write(address, data)
            if address == LAYOUT.used and bytes(data) == b"\0\0":
                offer(self, 0)

    ram = Meddler(SIZE)
    ring = Vring(ram, NUM, LAYOUT.desc, LAYOUT.avail, LAYOUT.used)
    ring.disable_notifications()
    assert ring.pop() is None
    assert ring.enable_notifications() is True


def test_index_is_published_after_its_entry() -> None:
    order = []

    class Watcher(Ram):
        def write(self, address: int, data: bytes | memoryview) -> None:
            order.append(address)
            super().write(address, data)

    ram = Watcher(SIZE)
    ring = Vring(ram, NUM, LAYOUT.desc, LAYOUT.avail, LAYOUT.used)
    offer(ram, 0)
    chain = ring.pop()
    assert chain is not None
    order.clear()
    ring.push(chain)
    assert order == [LAYOUT.used + 4, LAYOUT.used + 2]


# Drivers that break the rules ------------------------------------------------------------


@pytest.mark.parametrize("num", [0, 3, 100, 65536, 1 << 20])
def test_sizes_that_no_queue_has(num: int) -> None:
    with pytest.raises(VringError, match=f"a virtqueue cannot have {num} descriptors"):
        Vring(Ram(SIZE), num, 0, 0x2000, 0x3000)


@pytest.mark.parametrize(
    ("places", "text"),
    [
        ((8, 0x200, 0x400), "descriptor table cannot be at 0x8"),
        ((SIZE - 16, 0x200, 0x400), "descriptor table cannot be at 0xfff0"),
        ((1 << 63, 0x200, 0x400), "descriptor table cannot be at 0x8000000000000000"),
        ((0, 0x201, 0x400), "available ring cannot be at 0x201"),
        ((0, SIZE, 0x400), "available ring cannot be at 0x10000"),
        ((0, 0x200, 0x402), "used ring cannot be at 0x402"),
        ((0, 0x200, SIZE - 4), "used ring cannot be at 0xfffc"),
    ],
)
def test_rings_outside_memory(places: tuple[int, int, int], text: str) -> None:
    with pytest.raises(VringError, match=text):
        Vring(Ram(SIZE), NUM, *places)


def test_available_index_runs_ahead() -> None:
    ram, ring = make()
    offer(ram, index=NUM + 1)
    with pytest.raises(VringError, match="the available index moved from 0 to 9 in a queue of 8"):
        ring.pop()
    offer(ram, index=0xFFFF)  # and backwards
    with pytest.raises(VringError, match="moved from 0 to 65535"):
        ring.enable_notifications()


BROKEN: list[tuple[str, list[bytes]]] = [
    ("descriptor 0 is followed by 8 of 8", [desc(DATA, 1, NEXT, 8)]),
    ("more than 8 parts", [desc(DATA, 1, NEXT, 0)]),
    ("more than 8 parts", [desc(DATA, 1, NEXT, 1), desc(DATA, 1, NEXT, 0)]),
    ("descriptor 0 is not in memory: 0x10000 len 1", [desc(SIZE, 1)]),
    ("descriptor 0 is not in memory: 0xffff len 2", [desc(SIZE - 1, 2)]),
    ("not in memory: 0xffffffffffffffff len 2", [desc((1 << 64) - 1, 2)]),
    ("not in memory: 0x0 len 4294967295", [desc(0, (1 << 32) - 1)]),
    ("readable after writable", [desc(DATA, 1, NEXT | WRITE, 1), desc(DATA, 1)]),
    ("not negotiated", [desc(DATA, 16, INDIRECT)]),
]

BROKEN_TABLES: list[tuple[str, bytes, list[bytes]]] = [
    ("has a next one", desc(DATA, 16, INDIRECT | NEXT), []),
    ("an indirect table of 0 bytes", desc(DATA, 0, INDIRECT), []),
    ("an indirect table of 24 bytes", desc(DATA, 24, INDIRECT), []),
    ("an indirect table of 144 bytes", desc(DATA, 144, INDIRECT), []),
    ("an indirect table of 4294967280 bytes", desc(DATA, (1 << 32) - 16, INDIRECT), []),
    ("table is not in memory: 0xfff0 len 32", desc(SIZE - 16, 32, INDIRECT), []),
    ("refers to another one", desc(DATA, 16, INDIRECT), [desc(DATA, 16, INDIRECT)]),
    ("descriptor 0 is followed by 1 of 1", desc(DATA, 16, INDIRECT), [desc(0, 1, NEXT, 1)]),
    ("more than 8 parts", desc(DATA, 16, INDIRECT), [desc(0, 1, NEXT, 0)]),
]


@pytest.mark.parametrize(("text", "entries"), BROKEN)
def test_broken_chains(text: str, entries: list[bytes]) -> None:
    ram, ring = make()
    table(ram, *entries)
    offer(ram, 0)
    with pytest.raises(VringError, match=text):
        ring.pop()


@pytest.mark.parametrize(("text", "first", "inner"), BROKEN_TABLES)
def test_broken_indirect_tables(text: str, first: bytes, inner: list[bytes]) -> None:
    ram, ring = make(indirect=True)
    table(ram, first)
    ram.write(DATA, b"".join(inner))
    offer(ram, 0)
    with pytest.raises(VringError, match=text):
        ring.pop()


def test_direct_and_indirect_parts_count_together() -> None:
    """2.7.5.3.1: no chain is longer than the queue, wherever its descriptors are."""
    ram, ring = make(indirect=True)
    table(ram, desc(DATA, 1, NEXT, 1), desc(DATA, 16 * NUM, INDIRECT))
    ram.write(DATA, b"".join(desc(0, 1, NEXT, place + 1) for place in range(NUM - 1)))
    ram.write(DATA + 16 * (NUM - 1), desc(0, 1))
    offer(ram, 0)
    with pytest.raises(VringError, match="the chain at descriptor 0 has more than 8 parts"):
        ring.pop()


def test_head_out_of_range() -> None:
    ram, ring = make()
    offer(ram, NUM)
    with pytest.raises(VringError, match="descriptor 8 was made available in a queue of 8"):
        ring.pop()


def test_chain_that_is_too_long() -> None:
    class Vast(Ram):  # 2 GiB of memory that nobody touches
        def __init__(self) -> None:
            super().__init__(SIZE)
            self.size = 1 << 31

    ram = Vast()
    ring = Vring(ram, NUM, LAYOUT.desc, LAYOUT.avail, LAYOUT.used)
    half = (1 << 31) - DATA
    table(ram, desc(DATA, half, NEXT, 1), desc(DATA, half, NEXT, 2), desc(DATA, 3 * DATA))
    offer(ram, 0)
    with pytest.raises(VringError, match="has 4294971392 bytes"):
        ring.pop()


# Anything at all -------------------------------------------------------------------------

small = st.integers(0, NUM + 2)
addresses = st.one_of(
    st.integers(0, SIZE + 64), st.integers(0, 0x400), st.integers((1 << 64) - 64, (1 << 64) - 1)
)
lengths = st.one_of(st.integers(0, 256), st.integers(0, (1 << 32) - 1), st.just(64), st.just(16))
descriptors = st.builds(desc, addresses, lengths, st.integers(0, 7), small)
hostile = st.one_of(
    st.binary(min_size=16 * NUM, max_size=16 * NUM),
    st.lists(descriptors, min_size=NUM, max_size=NUM).map(b"".join),
)


def use_up(ring: Vring) -> int:
    """Take all there is, read and write all of it, give it back; how many there were."""
    count = 0
    while (chain := ring.pop()) is not None:
        count += 1
        assert len(chain.readable) + len(chain.writable) <= ring.num
        assert len(chain.read(SIZE)) <= SIZE
        chain.write(bytes(min(chain.room, 32)))
        ring.push(chain)
        if count > 4 * NUM:
            break  # what we wrote may have moved the driver's index
    return count


@settings(max_examples=600, deadline=None)
@given(
    entries=hostile,
    inner=hostile,
    heads=st.lists(st.one_of(small, st.integers(0, 0xFFFF)), min_size=NUM, max_size=NUM),
    index=st.one_of(small, st.integers(0, 0xFFFF)),
    indirect=st.booleans(),
)
def test_hostile_rings_raise_nothing_else(
    entries: bytes, inner: bytes, heads: list[int], index: int, indirect: bool
) -> None:
    """Ram.read and Ram.write fail the test when anything outside memory is touched."""
    ram, ring = make(indirect)
    ram.write(0, entries)
    ram.write(DATA, inner)
    ram.put(LAYOUT.avail, "HH8H", 0, index, *heads)
    try:
        use_up(ring)
        ring.enable_notifications()
    except VringError as error:
        assert str(error) and "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(everything=st.binary(min_size=2048, max_size=2048), indirect=st.booleans())
def test_noise(everything: bytes, indirect: bool) -> None:
    ram = Ram(2048)
    ram.write(0, everything)
    ring = Vring(ram, NUM, LAYOUT.desc, LAYOUT.avail, LAYOUT.used, indirect=indirect)
    try:
        use_up(ring)
    except VringError as error:
        assert str(error)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(st.integers(0, 9), max_size=120), seed=st.integers(0, 1 << 16))
def test_any_interleaving_keeps_order_and_content(steps: list[int], seed: int) -> None:
    ram = Ram(SIZE)
    ring = Vring(ram, NUM, LAYOUT.desc, LAYOUT.avail, LAYOUT.used)
    driver = Driver(ram, NUM, LAYOUT, DATA, 512, seed=seed)
    offered: list[tuple[int, bytes]] = []
    popped: list[Any] = []
    pushed: list[tuple[int, bytes]] = []
    for step in steps:
        if step < 4 and len(driver.free) >= 2:
            data = bytes([step]) * (step + 1)
            offered.append((driver.add([data], [8]).head, data))
        elif step < 7:
            chain = ring.pop()
            assert (chain is None) == (not offered)
            if chain is not None:
                head, data = offered.pop(0)
                assert (chain.head, chain.read(99)) == (head, data)
                popped.append(chain)
        elif step < 9 and popped:
            chain = popped.pop(step % len(popped))  # devices may give back in any order
            chain.write(data := bytes([len(pushed) & 0xFF]) * 5)
            ring.push(chain)
            pushed.append((chain.head, data))
        else:
            request = driver.take()
            assert (request is None) == (not pushed)
            if request is not None:
                head, data = pushed.pop(0)
                assert (request.head, request.written) == (head, 5)
                assert driver.data(request)[:5] == data
