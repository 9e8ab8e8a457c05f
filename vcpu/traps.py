"""Exceptions and interrupts through the Guest's IDT, where the engine does not do it itself.

Used with the stock wheel only (vcpu/stock.py); the patched engine delivers
natively.  32-bit protected mode: interrupt and trap gates, stack changes,
32-bit and PAE paging.
"""

from __future__ import annotations

import struct
from typing import Any

CR0_PE, CR0_PG, CR0_ET = 1, 1 << 31, 0x10
CR4_PAE = 0x20
EFER, EFER_LMA = 0xC0000080, 1 << 10
PAGE_LARGE = 0x80
EFLAGS_TF, EFLAGS_IF, EFLAGS_NT, EFLAGS_VM = 1 << 8, 1 << 9, 1 << 14, 1 << 17
EFLAGS_FIXED = 2
NMI_VECTOR, DOUBLE_FAULT, PAGE_FAULT = 2, 8, 14
GATE_INTERRUPT, GATE_TRAP = 0xE, 0xF
SELECTOR_MIN = 8


class DeliveryFaultError(Exception):
    """The Guest's IDT, GDT, TSS or stack cannot take this interrupt."""


class Traps:
    """Registers, linear memory and the delivery of one vector; `uc` is an open Unicorn engine."""

    def __init__(self, uc: Any, x86: Any, error: type[Exception]) -> None:
        self.uc = uc
        self._x = x86
        self._error = error

    def _interrupt(self, vector: int, code: int | None = None) -> None:
        """Deliver, then a double fault, then the end (SDM vol. 3, 6.15)."""
        try:
            self._through_gate(vector, code)
        except (DeliveryFaultError, self._error):
            try:
                self._through_gate(DOUBLE_FAULT, 0)
            except (DeliveryFaultError, self._error):
                self._kill(f"triple fault after vector {vector} at {self._where()}")

    def _through_gate(self, vector: int, code: int | None) -> None:
        """SDM vol. 3, 6.12.1: 32-bit interrupt and trap gates, changing stacks if need be."""
        x = self._x
        if self.uc.reg_read(x.UC_X86_REG_MSR, EFER) & EFER_LMA:
            self._kill("the stock engine delivers no interrupts in long mode: build ours")
            return
        _, base, limit, _ = self.uc.reg_read(x.UC_X86_REG_IDTR)
        if vector * 8 + 7 > limit:
            raise DeliveryFaultError
        low, selector, kind, high = struct.unpack("<HHHH", self._read(base + vector * 8, 8))
        if not kind & 0x8000 or kind >> 8 & 0xF not in (GATE_INTERRUPT, GATE_TRAP):
            raise DeliveryFaultError
        flags, old_cs = self._flags(), self._get(x.UC_X86_REG_CS)
        frame = [flags, old_cs, self._get(x.UC_X86_REG_EIP)] + ([] if code is None else [code])
        new_level = self._descriptor_level(selector)
        stack = self._get(x.UC_X86_REG_ESP)
        if new_level < old_cs & 3:
            frame = [self._get(x.UC_X86_REG_SS), stack, *frame]
            stack, stack_segment = self._inner_stack(new_level)
            self._set(x.UC_X86_REG_CS, selector & ~3 | new_level)
            self._set(x.UC_X86_REG_SS, stack_segment)
        else:
            self._set(x.UC_X86_REG_CS, selector & ~3 | old_cs & 3)
        for value in frame:
            stack = (stack - 4) & 0xFFFFFFFF
            self._write(stack, struct.pack("<I", value & 0xFFFFFFFF))
        self._set(x.UC_X86_REG_ESP, stack)
        cleared = EFLAGS_TF | EFLAGS_NT | EFLAGS_VM
        if kind >> 8 & 0xF == GATE_INTERRUPT:
            cleared |= EFLAGS_IF
        self._set(x.UC_X86_REG_EFLAGS, flags & ~cleared)
        self._set(x.UC_X86_REG_EIP, low | high << 16)

    def _descriptor_level(self, selector: int) -> int:
        _, base, limit, _ = self.uc.reg_read(self._x.UC_X86_REG_GDTR)
        if selector < SELECTOR_MIN or (selector | 7) > limit:
            raise DeliveryFaultError
        access = self._read(base + (selector & ~7) + 5, 1)[0]
        if access & 0x98 != 0x98:
            raise DeliveryFaultError
        return access >> 5 & 3

    def _inner_stack(self, level: int) -> tuple[int, int]:
        _, base, _, _ = self.uc.reg_read(self._x.UC_X86_REG_TR)
        stack, segment = struct.unpack("<II", self._read(base + 4 + level * 8, 8))
        return stack, segment & 0xFFFF

    def _page_fault_code(self) -> int:
        user = 4 if self._get(self._x.UC_X86_REG_CS) & 3 == 3 else 0
        try:
            self._read(self._get(self._x.UC_X86_REG_CR2), 1)
        except (DeliveryFaultError, self._error):
            return user
        return user | 1

    def _get(self, register: int) -> int:
        return int(self.uc.reg_read(register))

    def _set(self, register: int, value: int) -> None:
        self.uc.reg_write(register, value)

    def _flags(self) -> int:
        return self._get(self._x.UC_X86_REG_EFLAGS)

    def _where(self) -> str:
        return f"{self._get(self._x.UC_X86_REG_EIP):#x}"

    def _read(self, address: int, size: int) -> bytes:
        """Linear memory, through the Guest's page tables."""
        if not self._get(self._x.UC_X86_REG_CR0) & CR0_PG:
            return bytes(self.uc.mem_read(address & 0xFFFFFFFF, size))
        return b"".join(
            bytes(self.uc.mem_read(self._physical(address + i), 1)) for i in range(size)
        )

    def _write(self, address: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            self.uc.mem_write(self._physical(address + offset), bytes([byte]))

    def _physical(self, address: int) -> int:
        """SDM vol. 3, 4.3 and 4.4: 32-bit and PAE paging, without the A and D bits."""
        address &= 0xFFFFFFFF
        if not self._get(self._x.UC_X86_REG_CR0) & CR0_PG:
            return address
        pae = bool(self._get(self._x.UC_X86_REG_CR4) & CR4_PAE)
        width, bits = (8, 9) if pae else (4, 10)
        table = self._get(self._x.UC_X86_REG_CR3) & ~0x1F
        shift = 32
        for level_bits in (2, bits, bits) if pae else (bits, bits):
            shift -= level_bits
            at = table + (address >> shift & (1 << level_bits) - 1) * width
            entry = int.from_bytes(self.uc.mem_read(at, width), "little")
            if not entry & 1:
                raise DeliveryFaultError
            table = entry & 0xFFFFFFFFFF000
            if shift in (21, 22) and entry & PAGE_LARGE:
                break
        offset = (1 << shift) - 1
        return table & ~offset | address & offset

    def _kill(self, text: str) -> None:
        """The Guest did something that it must not do."""
        raise NotImplementedError
