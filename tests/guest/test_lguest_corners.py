"""Corners of the lguest machine that a kernel or its users may come to, one small Guest for each.

Every Guest is assembly text behind a prelude that has made it what Linux is by then: tables,
gates for all exceptions, a kernel's stack, segments for ring 3.  It passes by powering off.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from runtime.machine import Machine, Reason
from tests.helpers.assembly import assemble
from tests.helpers.images import Maker, Piece, write_file
from tests.helpers.launch import needs_engine

MEMORY = 8 << 20
CODE, DATA = 0x10000C, 0x120000
DATA_SIZE = 1392
BLOCKED, IRQ_ENABLED, KERNEL_ADDRESS, SYSCALL_VECTOR = DATA + 4, DATA, 0x568, 0x56C

PRELUDE = f"""
    .macro hcall number, a=$0, b=$0, c=$0
        mov \\c, %edx
        mov \\b, %ecx
        mov \\a, %ebx
        mov $\\number, %eax
        int $0x1f
    .endm
    .macro gate vector, handler, type
        mov $\\handler, %ecx
        mov %ecx, %edx
        and $0xffff0000, %edx
        or $\\type, %edx
        movzwl %cx, %ecx
        or $0x00610000, %ecx
        mov $\\vector, %ebx
        mov $6, %eax
        int $0x1f
    .endm
    .macro end text
        hcall 2, $\\text, $1
    .endm
    .macro user at
        push $0x7b
        push $0x2f0000
        push $0x202
        push $0x73
        push $\\at
        iret
    .endm

    mov $0x280000, %esp
    hcall 1, ${DATA}
    mov $0x200000, %edi                 # a directory, and tables for 8 MB as they are
    movl $0x201067, (%edi)
    movl $0x202067, 4(%edi)
    mov $0x201000, %edi
    mov $0x67, %eax
1:  stosl
    add $0x1000, %eax
    cmp ${MEMORY:#x}, %eax
    jb 1b
    hcall 4, $0x200000
    hcall 18, $14, $0x0000ffff, $0x00cffb00
    hcall 18, $15, $0x0000ffff, $0x00cff300
    mov $0x7b, %eax
    mov %eax, %ds
    mov %eax, %es
    hcall 7, $0x69, $0x280000, $2
    gate 6, invalid_opcode, 0x8e00
    gate 13, protection, 0x8e00
    gate 14, strange, 0x8e00
    gate 32, clock, 0x8e00
    gate 0x80, system_call, 0xef00
    jmp begin
strange:
    end text_strange
good:
    end text_good
text_strange:   .asciz "a trap that should not be"
text_bad:       .asciz "it went wrong"
text_good:      .asciz "Power down"
    .space 128
"""
HANDLERS = ("invalid_opcode", "protection", "clock", "system_call")
DEFAULTS = "".join(f".ifndef {name}; .set {name}, strange; .endif\n" for name in HANDLERS)


def run(directory: Path, source: str, seconds: float = 20, first: str = "") -> str:
    """What the Guest died of; nothing if it has passed.  `first` goes before all else."""
    needs_engine()
    code = assemble(directory, first + PRELUDE + source + DEFAULTS)
    data = bytearray(DATA_SIZE)
    data[0x18 : 0x18 + 64] = b"\xff" * 64
    struct.pack_into("<II", data, KERNEL_ADDRESS, 0xC0000000, 0x80)
    path = write_file(directory, Maker([Piece(code, CODE), Piece(bytes(data), DATA)]).build())
    with Machine(path, machine="lguest", memory=MEMORY, console="capture") as machine:
        end = machine.run(seconds)
    return "" if end.reason is Reason.POWEROFF else end.text


def test_there_is_no_local_descriptor_table(tmp_path: Path) -> None:
    """Not even where somebody has put a descriptor at address 8."""
    source = """
begin:
    movl $0x0000ffff, 8
    movl $0x00cff300, 12
    user load
load:
    mov $0xf, %eax
    mov %eax, %gs
    int $0x80
system_call:
    end text_bad
protection:
    cmpl $0xc, (%esp)
    je good
    end text_bad
"""
    assert run(tmp_path, source) == ""


@pytest.mark.parametrize("ring", [1, 3])
def test_iret_does_not_lead_to_virtual_8086_mode(tmp_path: Path, ring: int) -> None:
    """Only in ring 0 does the bit in the popped flags mean that."""
    begin = "user back" if ring == 3 else "jmp back"
    source = f"""
begin:
    {begin}
back:
    push $0
    push $0
    push $0
    push $0
    push $0x7b
    push $0x2f0000
    push $0x23202                       # VM, IOPL 3
    push %cs
    push $there
    iret
there:
    pushf
    pop %eax
    test $0x23000, %eax
    jnz bad
    int $0x80
bad:
    end text_bad
system_call:
    jmp good
"""
    assert run(tmp_path, source) == ""


def test_an_interrupt_that_was_blocked_comes_when_it_no_longer_is(tmp_path: Path) -> None:
    """Nobody says that it no longer is: the Guest only clears a bit."""
    source = f"""
begin:
    movl $1, {BLOCKED}
    movl $0x200, {IRQ_ENABLED}
    hcall 9, $1000
    mov $200000000, %ecx                # some 100 ms
1:  dec %ecx
    jnz 1b
    movl $0, {BLOCKED}
2:  pause
    jmp 2b
clock:
    jmp good
"""
    assert run(tmp_path, source) == ""


def test_a_user_cannot_kill_the_guest_by_a_segment(tmp_path: Path) -> None:
    """Its eip is no address where its code segment does not begin at 0; it is not read."""
    source = """
begin:
    movb $0xf4, 0x780000                # HLT
    movl $0, 0x201000 + 4 * 0x700       # nothing at 0x700000
    hcall 5, $1
    hcall 18, $6, $0x0000ffff, $0x00cffb08      # code that begins at 0x80000
    push $0x7b
    push $0x2f0000
    push $0x202
    push $0x33
    push $0x700000
    iret
protection:
    cmpl $0, (%esp)
    jne bad
    cmpl $0x33, 8(%esp)
    je good
bad:
    end text_bad
"""
    assert run(tmp_path, source) == ""


def test_a_hypercall_by_vmcall_becomes_an_int(tmp_path: Path) -> None:
    """As 2.6.30 to 3.0 made them; a user has none."""
    source = """
begin:
    user call
call:
    .byte 0x0f, 0x01, 0xc1
invalid_opcode:
    cmpl $call, (%esp)
    jne bad
    mov $text_good, %ebx
    mov $1, %ecx
    mov $2, %eax
again:
    .byte 0x0f, 0x01, 0xc1
bad:
    end text_bad
"""
    assert run(tmp_path, source) == ""


def test_msrs_before_anything_else(tmp_path: Path) -> None:
    """Linux looks for microcode before it knows where it is; later it handles the fault."""
    first = """
    mov $0x17, %ecx
    mov $-1, %eax
    mov %eax, %edx
    rdmsr
    or %edx, %eax
    mov %eax, %ebp
    mov $0x8b, %ecx
    wrmsr
"""
    source = """
begin:
    test %ebp, %ebp
    jnz bad
there:
    rdmsr
bad:
    end text_bad
protection:
    cmpl $there, 4(%esp)
    je good
    end text_bad
"""
    assert run(tmp_path, source, first=first) == ""
