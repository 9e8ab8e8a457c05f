"""Random hypercalls with random arguments: the Guest may die of a sentence, and nothing else.

Each seed is a Guest that makes a few hundred calls, some queued in the async ring, on one or
two vCPUs.  `make soak` goes on for SMPGUEST_SOAK_SECONDS (600).  A broken Host shows as status 6
or a traceback in the log, which is the same.
"""

from __future__ import annotations

import os
import random
import struct
import time
from pathlib import Path

import pytest

from runtime.machine import Exit, Machine, Reason
from tests.helpers.assembly import assemble
from tests.helpers.images import Maker, Piece, write_file
from tests.helpers.launch import needs_engine
from tests.helpers.leaks import no_leaks

MEMORY = 8 << 20
CODE, CALLS, DATA, SECOND_DATA = 0x10000C, 0x110000, 0x120000, 0x130000
DATA_SIZE, RING_AT, CALLS_AT = 1392, 0x18, 0x58
KERNEL_ADDRESS_AT, SYSCALL_VECTOR_AT = 0x568, 0x56C
WORDS = [
    *(0, 1, 2, 3, 8, 15, 31, 32, 33, 64, 0x61, 0x69, 255, 256, 1023, 1024, 1025, 4095, 4096),
    *(CODE, CALLS, DATA, SECOND_DATA, 0x118000, MEMORY - 4096, MEMORY - 4, MEMORY - 1, MEMORY),
    *(MEMORY + 4096, MEMORY + (1 << 20), 0x40000000, 0xC0000000, 0xFFBFF000, 0xFFC00000),
    *(0xFFC01FF0, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFC, 0xFFFFFFFF),
    *(0x8E00, 0x8F00, 0xEF00, 0xC0108E00, 0x0061FFFF, 0x00CFFB00, 0x00CF9300, 0x0000EC00),
]
NUMBERS = [*range(20), *range(32, 37), 0xFFFFFFFF]
HARMLESS = (0, 5, 8, 14, 15, 19)
ENDS = (Reason.KILLED, Reason.POWEROFF, Reason.RESTART, Reason.TIMEOUT)

SOURCE = f"""
    mov $0x200000, %esp
    mov $1, %eax
    mov ${DATA}, %ebx
    int $0x1f
    mov $32, %eax
    mov $1, %ebx
    int $0x1f
    mov ${CALLS}, %edi
    test %esi, %esi
    jz next
    mov $0x280000, %esp
    mov $1, %eax
    mov ${SECOND_DATA}, %ebx
    int $0x1f
    mov ${CALLS + 0x8000}, %edi
next:
    mov (%edi), %eax
    mov 4(%edi), %ebx
    mov 8(%edi), %ecx
    mov 12(%edi), %edx
    mov 16(%edi), %esi
    add $20, %edi
    int $0x1f
    jmp next
"""


def word(dice: random.Random) -> int:
    kind = dice.random()
    if kind < 0.6:
        return dice.choice(WORDS)
    return dice.randrange(MEMORY) if kind < 0.8 else dice.getrandbits(32)


def one_call(dice: random.Random) -> bytes:
    number = dice.choice(HARMLESS if dice.random() < 0.7 else NUMBERS)
    if dice.random() < 0.02:
        number = dice.getrandbits(32)
    return struct.pack("<5I", number, *(word(dice) for _ in range(4)))


def some_calls(dice: random.Random) -> bytes:
    calls = [one_call(dice) for _ in range(dice.randrange(1, 300))]
    return b"".join([*calls, struct.pack("<5I", 2, 0x100, dice.randrange(4), 0, 0)])


def lguest_data(dice: random.Random) -> bytes:
    data = bytearray(DATA_SIZE)
    data[RING_AT : RING_AT + 64] = bytes(dice.choice((0xFF, 0xFF, 0xFF, 0)) for _ in range(64))
    for slot in range(64):
        data[CALLS_AT + 20 * slot : CALLS_AT + 20 * (slot + 1)] = one_call(dice)
    struct.pack_into("<II", data, KERNEL_ADDRESS_AT, 0xC0000000, 0x80)
    if dice.random() < 0.05:
        struct.pack_into("<II", data, KERNEL_ADDRESS_AT, word(dice), word(dice))
    return bytes(data)


def image(code: bytes, dice: random.Random) -> bytes:
    return Maker(
        [
            Piece(code, CODE),
            Piece(some_calls(dice), CALLS),
            Piece(some_calls(dice), CALLS + 0x8000),
            Piece(lguest_data(dice), DATA),
            Piece(lguest_data(dice), SECOND_DATA),
        ]
    ).build()


def run_seed(directory: Path, code: bytes, seed: int) -> Exit:
    dice = random.Random(seed)
    path = write_file(directory, image(code, dice))
    vcpus = 1 + seed % 2
    with Machine(
        path, machine="lguest", memory=MEMORY, vcpus=vcpus, console="capture"
    ) as machine:
        end = machine.run(0.5)
    assert end.reason in ENDS, f"seed {seed}: {end.reason}: {end.text}"
    assert end.text, f"seed {seed}: no sentence"
    return end


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    needs_engine()
    return assemble(tmp_path_factory.mktemp("fuzz"), SOURCE)


def test_random_hypercalls(tmp_path: Path, code: bytes) -> None:
    with no_leaks():
        texts = {run_seed(tmp_path, code, seed).text for seed in range(25)}
    assert len(texts) > 5  # they do not all die of the same


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ten_minutes_of_random_hypercalls(tmp_path: Path, code: bytes) -> None:
    ends_at = time.monotonic() + float(os.environ.get("SMPGUEST_SOAK_SECONDS", "600"))
    seed = 1000
    texts: dict[str, int] = {}
    with no_leaks():
        while time.monotonic() < ends_at:
            text = run_seed(tmp_path, code, seed).text
            texts[text[:24]] = texts.get(text[:24], 0) + 1
            seed += 1
    print(f"{seed - 1000} Guests; what they died of: {texts}")
