"""The Switcher's window, from inside the Guest: who reaches what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.machine import Exit, Machine, Reason
from switcher.pages import PAGE, SWITCHER_ADDRESS, map_switcher
from tests.helpers.assembly import LEAVE, assemble
from tests.helpers.images import code_kernel, write_file
from tests.helpers.launch import needs_engine

TEXT = b"\xb8\x34\x12\x00\x00\xc3"  # mov eax, 0x1234; ret
GUARD = SWITCHER_ADDRESS + 5 * PAGE  # behind 1 + 2 * 2 pages
OWN_REGISTERS, OWN_STATE, OTHERS = (SWITCHER_ADDRESS + n * PAGE for n in (1, 2, 3))


def run(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> Exit:
    """Run `source` on vCPU 0 of 2 with the window mapped."""
    needs_engine()
    start = Machine._start_workers

    def mapped(self: Machine, switcher: Any, control: Any, *rest: Any) -> None:
        map_switcher(control.pointer, TEXT)
        start(self, switcher, control, *rest)

    monkeypatch.setattr(Machine, "_start_workers", mapped)
    path = write_file(tmp_path, code_kernel(assemble(tmp_path, source)))
    with Machine(path, vcpus=2, memory="8M", console="capture") as machine:
        return machine.run(20)


def killed_at(end: Exit, address: int) -> bool:
    return end.reason is Reason.KILLED and f"cr2 {address:#x}" in end.text


def test_ring_0_reads_and_runs_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = "mov $0x300000, %esp"
    end = run(tmp_path, f"{stack}; mov ${SWITCHER_ADDRESS}, %eax; call *%eax; {LEAVE}", monkeypatch)
    assert (end.reason, end.code) == (Reason.DEBUG_EXIT, 0x1234)


def test_own_registers_page_is_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = run(
        tmp_path,
        f"movl $77, {OWN_REGISTERS + 8}; mov {OWN_REGISTERS + 8}, %eax; "
        f"add {OWN_STATE}, %eax; {LEAVE}",
        monkeypatch,
    )
    assert (end.reason, end.code) == (Reason.DEBUG_EXIT, 77)


@pytest.mark.parametrize(
    ("what", "address"),
    [
        ("movl $1, {}", SWITCHER_ADDRESS + 16),
        ("movl $1, {}", OWN_STATE),
        ("mov {}, %eax", OTHERS),
        ("mov {}, %eax", GUARD),
        ("lock incl {}", SWITCHER_ADDRESS + 64),
    ],
    ids=["write text", "write state", "read another vCPU's", "read guard", "locked write"],
)
def test_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, address: int
) -> None:
    end = run(tmp_path, f"{what.format(address)}; {LEAVE}", monkeypatch)
    assert killed_at(end, address), end


def test_the_page_after_the_guard_is_the_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = run(tmp_path, f"mov {GUARD + PAGE}, %eax; {LEAVE}", monkeypatch)
    assert (end.reason, end.code) == (Reason.DEBUG_EXIT, 0xFFFFFFFF)  # nothing is there


PAGING = """
    mov $0x200000, %edi        # a directory of 4 MB pages, everything onto physical 0 .. 4 MB
    mov $0x83, %eax
    mov $1024, %ecx
    rep stosl
    mov $0x200000, %eax
    mov %eax, %cr3
    mov $0x10, %eax            # PSE
    mov %eax, %cr4
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
"""


def test_the_guests_tables_cannot_cover_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = run(tmp_path, f"{PAGING} mov {SWITCHER_ADDRESS}, %eax; {LEAVE}", monkeypatch)
    assert (end.reason, end.code) == (Reason.DEBUG_EXIT, int.from_bytes(TEXT[:4], "little"))


def lower_ring(ring: int) -> str:
    """Ring 0 reads the window (so that a TLB entry could be left), then ring `ring` tries."""
    return f"""
        lgdt gdtr
        mov $0x300000, %esp
        mov {SWITCHER_ADDRESS}, %eax
        push ${0x18 | ring}
        push $0x280000
        push $0x3002               # IOPL 3
        push ${0x10 | ring}
        push $low
        iret
    low:
        mov ${0x18 | ring}, %eax
        mov %eax, %ds
        mov {SWITCHER_ADDRESS}, %eax
        {LEAVE}
    gdt:
        .quad 0, 0
        .quad 0x00cf9b000000ffff | ({ring} << 45)
        .quad 0x00cf93000000ffff | ({ring} << 45)
    gdtr:
        .word 31
        .long gdt
    """


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_lower_rings_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ring: int) -> None:
    end = run(tmp_path, lower_ring(ring), monkeypatch)
    assert killed_at(end, SWITCHER_ADDRESS), end
    assert f"at {0x10 | ring:04x}:" in end.text
