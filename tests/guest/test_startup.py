"""INIT and SIPI: how other vCPUs come up (SDM 8.4.4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.machine import Machine, Reason
from tests.helpers.assembly import LEAVE, assemble
from tests.helpers.images import code_kernel, write_file
from tests.helpers.launch import needs_engine

ICR_LOW, ICR_HIGH = 0xFEE00300, 0xFEE00310
INIT, SIPI_AT_0X2000 = 0x4500, 0x4602

# Real-mode code for 0x2000: say "I am up" in memory and stop.
AP_CODE = "0xfa, 0xc6, 0x06, 0x00, 0x70, 0x01, 0xf4, 0xeb, 0xfd"  # cli; movb $1, 0x7000; hlt


@pytest.mark.parametrize("rounds", [200])
def test_a_sipi_right_behind_the_init_counts(tmp_path: Path, rounds: int) -> None:
    """No delay between the two, so the sleeping vCPU finds both pending at once.

    200 rounds; dropping the SIPI in that case shows in the first round or two.
    """
    needs_engine()
    source = f"""
        mov $ap, %esi
        mov $0x2000, %edi
        mov $16, %ecx
        rep movsb
        mov ${rounds}, %ebx
    again:
        movb $0, 0x7000
        movl $0x01000000, {ICR_HIGH}
        movl ${INIT}, {ICR_LOW}
        movl ${SIPI_AT_0X2000}, {ICR_LOW}
    wait:
        pause
        cmpb $0, 0x7000
        je wait
        dec %ebx
        jnz again
        mov $0, %eax
        {LEAVE}
    ap: .byte {AP_CODE}, 0, 0, 0, 0, 0, 0, 0
    """
    path = write_file(tmp_path, code_kernel(assemble(tmp_path, source)))
    with Machine(path, vcpus=2, memory="4M", console="capture") as machine:
        end = machine.run(30)
    assert (end.reason, end.code) == (Reason.DEBUG_EXIT, 0), end
