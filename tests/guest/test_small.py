"""Kernels of a few bytes: start states, ports, hooks, and the exits a user sees."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.machine import Exit, Machine, Reason
from tests.helpers.assembly import LEAVE, assemble
from tests.helpers.images import (
    Maker,
    Piece,
    code_kernel,
    debug_exit_code,
    multiboot_header,
    print_code,
    write_file,
)
from tests.helpers.launch import launch, needs_engine
from tests.helpers.leaks import no_leaks

HOOK_READ, HOOK_WRITE = 1 << 10, 1 << 11  # UC_HOOK_MEM_READ, _WRITE


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    needs_engine()
    with no_leaks():
        yield


def run(tmp_path: Path, image: bytes, timeout: float = 20, **options: Any) -> Exit:
    path = write_file(tmp_path, image)
    with Machine(path, **{"memory": "4M", "console": "capture"} | options) as machine:
        return machine.run(timeout)


def test_debug_exit(tmp_path: Path) -> None:
    end = run(tmp_path, code_kernel(debug_exit_code(0x21)))
    assert (end.reason, end.status) == (Reason.DEBUG_EXIT, 0x43)


def test_console(tmp_path: Path) -> None:
    end = run(tmp_path, code_kernel(print_code(b"hello\n") + debug_exit_code(0)))
    assert end.console == b"hello\n"
    assert end.counters[0]["pio_posted"] == 6


def test_multiboot_registers(tmp_path: Path) -> None:
    # mov edx, 0xf4; out dx, eax
    end = run(tmp_path, code_kernel(b"\xba\xf4\0\0\0\xef\xf4"))
    assert end.code == 0x2BADB002
    # mov eax, ebx; ...
    end = run(tmp_path, code_kernel(b"\x89\xd8\xba\xf4\0\0\0\xef\xf4"))
    assert end.code == 0x9500


def test_bare_elf32_is_in_protected_mode(tmp_path: Path) -> None:
    # mov eax, cr0; mov edx, 0xf4; out dx, eax
    end = run(tmp_path, Maker([Piece(b"\x0f\x20\xc0\xba\xf4\0\0\0\xef\xf4")]).build())
    assert end.code & 0x80000001 == 1


def test_bare_elf64_is_in_long_mode(tmp_path: Path) -> None:
    # mov rax, 0x1234_5678_9abc_def0; shr rax, 32; mov edx, 0xf4; out dx, eax
    code = b"\x48\xb8" + struct.pack("<Q", 0x123456789ABCDEF0) + b"\x48\xc1\xe8\x20"
    end = run(tmp_path, Maker([Piece(code + b"\xba\xf4\0\0\0\xef\xf4")], bits=64).build())
    assert end.code == 0x12345678


def test_triple_fault_is_a_sentence_with_registers(tmp_path: Path) -> None:
    end = run(tmp_path, code_kernel(b"\x0f\x0b"))  # ud2 without an IDT
    assert (end.reason, end.status, end.vcpu) == (Reason.KILLED, 4, 0)
    assert "triple fault" in end.text
    assert end.death is not None
    assert end.death.rip == 0x10000C


def test_halt_for_ever_ends_by_timeout(tmp_path: Path) -> None:
    end = run(tmp_path, code_kernel(b"\xfa\xf4\xeb\xfd"), timeout=0.3, vcpus=2)
    assert (end.reason, end.status) == (Reason.TIMEOUT, 124)


def test_nobody_s_port_reads_all_ones(tmp_path: Path) -> None:
    # mov edx, 0x5555; in eax, dx; mov edx, 0xf4; out dx, eax
    end = run(tmp_path, code_kernel(b"\xba\x55\x55\0\0\xed\xba\xf4\0\0\0\xef\xf4"))
    assert end.code == 0xFFFFFFFF


def test_ioapic_version_through_mmio(tmp_path: Path) -> None:
    # mov byte [0xfec00000], 1; mov eax, [0xfec00010]; mov edx, 0xf4; out dx, eax
    code = b"\xc7\x05\0\0\xc0\xfe\x01\0\0\0\xa1\x10\0\xc0\xfe\xba\xf4\0\0\0\xef\xf4"
    end = run(tmp_path, code_kernel(code))
    assert end.code == 0x00170011
    assert end.counters[0]["mmio_host"] == 2


def test_unicorn_hooks_see_the_guest(tmp_path: Path) -> None:
    def on_vcpu(uc: Any, _index: int) -> Any:
        import unicorn

        seen: list[int] = []
        uc.hook_add(unicorn.UC_HOOK_CODE, lambda _uc, address, _size, _data: seen.append(address))
        return lambda: seen

    end = run(tmp_path, code_kernel(b"\x90\x90" + debug_exit_code(0)), on_vcpu=on_vcpu)
    assert end.status == 1
    assert end.results[0][:4] == [0x10000C, 0x10000D, 0x10000E, 0x100010]


def test_hook_that_raises_is_reported(tmp_path: Path) -> None:
    def on_vcpu(uc: Any, _index: int) -> None:
        import unicorn

        def bad(*_: object) -> None:
            raise ValueError("hook")

        uc.hook_add(unicorn.UC_HOOK_BLOCK, bad)

    end = run(tmp_path, code_kernel(b"\xeb\xfe"), on_vcpu=on_vcpu)
    assert end.status == 6
    assert "ValueError: hook" in end.text


def test_uart_interrupt_reaches_the_guest_s_ioapic(tmp_path: Path) -> None:
    """With interrupts off a pending one must not end HLT for ever: the time-out does."""
    # IER = 2 (THRE interrupt), then cli; hlt
    code = b"\x66\xba\xf9\x03\xb0\x02\xee\xfa\xf4\xeb\xfd"
    assert run(tmp_path, code_kernel(code), timeout=0.3).reason is Reason.TIMEOUT


def test_echo_of_piped_input(tmp_path: Path) -> None:
    # again: in al, LSR; test al, 1; jz again; in al, RBR; out THR, al; cmp al, 10; jne again
    code = (
        b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7\x66\xba\xf8\x03\xec\xee\x3c\x0a\x75\xed"
    ) + debug_exit_code(0)
    path = write_file(tmp_path, code_kernel(code))
    for source in ("pipe", "file"):
        text = b"some words through a " + source.encode() + b" " * 5000 + b"\n"
        if source == "pipe":
            read, write = os.pipe()
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=write).communicate(text)
            os.close(write)
        else:
            read = os.open(write_file(tmp_path, text, "input"), os.O_RDONLY)
        end = launch("run", path, stdin=read)
        os.close(read)
        assert (end.returncode, end.stdout) == (1, text)


def test_stats_file(tmp_path: Path) -> None:
    path = write_file(tmp_path, code_kernel(print_code(b"x") + debug_exit_code(4)))
    stats = tmp_path / "out.json"
    assert launch("run", "--vcpus", "2", "--stats", stats, path).returncode == 9
    told = json.loads(stats.read_text())
    assert (told["reason"], told["status"], told["code"]) == ("debug_exit", 9, 4)
    assert len(told["vcpus"]) == 2
    assert told["vcpus"][0]["counters"]["pio_posted"] == 1
    assert set(told["cpu_seconds"]) == {"host", "vcpu0", "vcpu1"}
    assert told["big_lock"]["bus"]["count"] > 0


def test_restart_boots_again(tmp_path: Path) -> None:
    """RAM and devices are new each time, so it restarts until the time-out."""
    path = write_file(tmp_path, code_kernel(print_code(b"boot ") + b"\xb0\xfe\xe6\x64\xf4"))
    end = launch("run", "--timeout", "2", path)
    assert end.returncode == 124
    assert end.stdout.count(b"boot ") >= 2


def test_append_reaches_the_kernel(tmp_path: Path) -> None:
    # mov esi, [ebx+16]; again: lodsb; test al, al; jz out; out 0x3f8 ...; jmp again
    code = b"\x8b\x73\x10\x66\xba\xf8\x03\xac\x84\xc0\x74\x03\xee\xeb\xf8" + debug_exit_code(0)
    path = write_file(tmp_path, code_kernel(code))
    end = launch("run", "--append", "verbose=1 x", path)
    assert end.stdout.decode() == f"{path} verbose=1 x"


def test_timeout_says_where_each_vcpu_stands(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, code_kernel(b"\xeb\xfe"))  # jmp $
    end = launch("run", "--vcpus", "2", "--timeout", "0.5", "--log-level", "error", kernel)
    assert end.returncode == 124
    first, *lines = end.stderr.decode().splitlines()
    assert first.endswith("the time given by --timeout ran out")
    assert lines[0] == "  vCPU 0: running at 0010:0x10000c"
    assert lines[1].startswith("  vCPU 1: waiting for SIPI")


def test_hook_on_in_takes_the_device_s_place(tmp_path: Path) -> None:
    def answer(uc: Any, index: int) -> None:
        from unicorn import UC_HOOK_INSN
        from unicorn.x86_const import UC_X86_INS_IN

        uc.hook_add(UC_HOOK_INSN, lambda *_: 0x2A, aux1=UC_X86_INS_IN)

    code = b"\xe4\x71\xe6\xf4\xf4"  # in al, 0x71; out 0xf4, al; hlt
    assert run(tmp_path, code_kernel(code), on_vcpu=answer).code == 0x2A


def test_log_says_what_is_there(tmp_path: Path) -> None:
    path = write_file(tmp_path, code_kernel(debug_exit_code(0)))
    end = launch("run", path)
    assert b"pc machine (guessed from the image): multiboot kernel, 1 vCPU, 48M" in end.stderr
    end = launch("run", "--machine", "pc", path)
    assert b"pc machine: multiboot kernel, 1 vCPU, 48M" in end.stderr
    assert launch("run", "--log-level", "error", path).stderr == b""


def test_address_form_boots(tmp_path: Path) -> None:
    at = 0x100000
    header = multiboot_header(1 << 16, (at, at, 0, 0, at + 32))
    end = run(tmp_path, header + debug_exit_code(9))
    assert end.code == 9


def test_unicorn_may_be_imported_right_after_the_machine(tmp_path: Path) -> None:
    """As the README's example does, before any machine is made."""
    kernel = write_file(tmp_path, code_kernel(debug_exit_code(0)))
    script = (
        "from runtime.machine import Machine\n"
        "from unicorn import UC_HOOK_BLOCK\n"
        f"with Machine(kernel={str(kernel)!r}, vcpus=2, memory='4M') as m:\n"
        "    print(m.run(timeout=20).status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["1"], done.stderr


@pytest.mark.parametrize(
    "code", ["f00fbbc8", "f00fabc8", "f00fb3c8", "f00fbae801", "f00fa30500400000"]
)
def test_lock_on_a_bit_test_of_a_register_is_ud(tmp_path: Path, code: str) -> None:
    """SDM: #UD; without an IDT that is a triple fault, never a crash of ours."""
    end = run(tmp_path, code_kernel(bytes.fromhex(code) + debug_exit_code(0)), vcpus=2)
    assert end.reason is Reason.KILLED
    assert "triple fault" in end.text


@pytest.mark.parametrize("code", ["d9c9", "d8c1", "d9e8", "dae9", "d40a", "0f20d0"])
def test_long_blocks_of_one_instruction(tmp_path: Path, code: str) -> None:
    """1,500 in a row: their translations leak temporaries; 240 fxch crashed the engine."""
    stream = b"\x0f\x20\xc0\x24\xf1\x0f\x22\xc0\xdb\xe3"  # clear CR0.EM, TS; fninit
    end = run(tmp_path, code_kernel(stream + bytes.fromhex(code) * 1500 + debug_exit_code(0)))
    assert (end.reason, end.status) == (Reason.DEBUG_EXIT, 1), end.text


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize(
    "code", ["f0ff05", "8705", "f00fc105", "ff05"], ids=["lock inc", "xchg", "lock xadd", "inc"]
)
def test_memory_hooks_see_locked_instructions(tmp_path: Path, code: str, vcpus: int) -> None:
    """A read and a write of each, as of a plain `inc`."""

    def watch(uc: Any, vcpu: int) -> Any:
        seen: list[int] = []
        uc.hook_add(
            HOOK_READ | HOOK_WRITE, lambda *a: seen.append(a[1]), begin=0x300000, end=0x300003
        )
        return lambda: len(seen)

    kernel = code_kernel(bytes.fromhex(code) + b"\x00\x00\x30\x00" + debug_exit_code(0))
    end = run(tmp_path, kernel, vcpus=vcpus, hooks={0: watch})
    assert end.results == {0: 2}


@pytest.mark.parametrize(
    "code", ["f00fc8", "f087c8", "f090", "f091", "f001c8", "f089042400", "f03b05"]
)
def test_lock_where_it_does_not_belong_is_ud(tmp_path: Path, code: str) -> None:
    """bswap, xchg and add of registers, nop, mov to memory, cmp."""
    end = run(tmp_path, code_kernel(bytes.fromhex(code) + bytes(4) + debug_exit_code(0)))
    assert (end.reason, end.death and end.death.rip) == (Reason.KILLED, 0x10000C)


def test_lock_where_it_belongs(tmp_path: Path) -> None:
    word = "0x300000"
    register = "add or adc sbb and sub xor xadd cmpxchg xchg bts btr btc"
    alone = "incl decl notl negl incb decb notb negb cmpxchg8b"
    constant = "addl subb xorb btsl btrl btcl"
    lines = [f"lock {name} %eax, {word}" for name in register.split()]
    lines += [f"lock {name} {word}" for name in alone.split()]
    lines += [f"lock {name} $1, {word}" for name in constant.split()]
    code = assemble(tmp_path, "; ".join([*lines, "xor %eax, %eax", LEAVE]))
    assert run(tmp_path, code_kernel(code), vcpus=2).status == 1


@pytest.mark.parametrize("jump", ["tsc", "tsc_adjust"])
def test_an_armed_tsc_deadline_moves_with_the_tsc(tmp_path: Path, jump: str) -> None:
    """Two deadlines: one that the jump makes past, one that it takes far away."""
    set_tsc = {
        "tsc": "mov $0x10, %ecx; wrmsr",  # to edx:eax
        "tsc_adjust": "mov $0x3b, %ecx; wrmsr",  # by edx:eax; the TSC itself began near 0
    }[jump]
    source = f"""
        movl $0x1ff, 0xfee000f0
        movl $0x40030, 0xfee00320       # TSC deadline, vector 0x30
        mov $0x6e0, %ecx
        mov $0x100, %edx                # 2**40: minutes away
        xor %eax, %eax
        wrmsr
        mov $0x101, %edx                # the TSC jumps over it
        {set_tsc}
        mov $100, %ebx
    1:  mov 0xfee00210, %eax            # IRR, vectors 32 .. 63
        test $0x10000, %eax
        jnz 2f
        pause
        dec %ebx
        jnz 1b
        mov $1, %eax
        {LEAVE}
    2:  mov $0x6e0, %ecx
        mov $0x300, %edx                # armed, then the TSC goes back: what is read stays
        mov $0x12345678, %eax
        wrmsr
        xor %edx, %edx
        {set_tsc}
        mov $0x6e0, %ecx
        rdmsr
        xor $0x12345678, %eax
        xor $0x300, %edx
        or %edx, %eax
        {LEAVE}
    """
    assert run(tmp_path, code_kernel(assemble(tmp_path, source))).code == 0


@pytest.mark.parametrize(("code", "instruction"), [("0f05", "SYSCALL"), ("0f34", "SYSENTER")])
def test_hooks_do_not_see_what_faults(tmp_path: Path, code: str, instruction: str) -> None:
    """Neither is set up: #UD, #GP."""

    def watch(uc: Any, _index: int) -> Any:
        import unicorn
        from unicorn import x86_const

        seen: list[int] = []
        number = getattr(x86_const, f"UC_X86_INS_{instruction}")
        uc.hook_add(unicorn.UC_HOOK_INSN, lambda *_: seen.append(1), None, 1, 0, number)
        return lambda: len(seen)

    end = run(tmp_path, Maker([Piece(bytes.fromhex(code))], bits=64).build(), on_vcpu=watch)
    assert (end.reason, end.results) == (Reason.KILLED, {0: 0})


def test_translations_are_counted(tmp_path: Path) -> None:
    end = run(tmp_path, code_kernel(b"\x90\xeb\x00" * 50 + debug_exit_code(0)))
    assert 50 < end.counters[0]["tb_translated"] < 60


def test_input_survives_a_restart(tmp_path: Path) -> None:
    """A guest that reads a byte and restarts, until it reads a q."""
    source = f"""
        mov $0x3fd, %dx
    1:  in %dx, %al
        test $1, %al
        jz 1b
        mov $0x3f8, %dx
        in %dx, %al
        out %al, %dx
        cmp $'q, %al
        je 2f
        mov $0xfe, %al
        out %al, $0x64
        hlt
    2:  xor %eax, %eax
        {LEAVE}
    """
    path = write_file(tmp_path, code_kernel(assemble(tmp_path, source)))
    for sender_stays in (False, True):
        read, write = os.pipe()
        os.write(write, b"abcq")
        if not sender_stays:
            os.close(write)
        end = launch("run", "--timeout", "20", path, stdin=read)
        os.close(read)
        if sender_stays:
            os.close(write)
        assert (end.returncode, end.stdout) == (1, b"abcq")
