/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The Switcher's text: the code that the CPU runs between the Host and the
 * Guest of the lguest machine, in ring 0, one page at most (vcpu/lguest copies
 * it to the window's first page).
 *
 * The Host stands at HLT.  Resumed, it pops the Guest's registers from the
 * end of this vCPU's registers page (struct lguest_regs; ESP points at its
 * start) and IRETs into ring 1 or 3.  A trap comes back through one of 256
 * entries: the TSS has put ESP behind the struct, so the CPU's own frame, the
 * error code (or 0), the trap's number and the registers land where they were
 * popped from, and ESP is at the start of the struct again.
 *
 * A fault of this code itself (a segment that the Guest made invalid) pushes
 * its frame below `trapnum`, which still says LGUEST_SWITCHER_TRAP: that is how
 * the Host notices.
 */
#include <stdint.h>
#include "control.h"

__asm__(
    ".pushsection .rodata\n"
    ".balign 16\n"
    ".code32\n"
    "smp_text_begin:\n"
    "smp_text_enter:\n"
    "    popl %eax\n    popl %ebx\n    popl %ecx\n    popl %edx\n"
    "    popl %esi\n    popl %edi\n    popl %ebp\n"
    "    popl %gs\n    popl %fs\n    popl %ds\n    popl %es\n"
    "    addl $8, %esp\n" /* trapnum, errcode */
    "    iret\n"
    "smp_text_leave:\n"
    "    pushl %es\n    pushl %ds\n    pushl %fs\n    pushl %gs\n"
    "    pushl %ebp\n    pushl %edi\n    pushl %esi\n"
    "    pushl %edx\n    pushl %ecx\n    pushl %ebx\n    pushl %eax\n"
    "    cld\n"
    "    hlt\n" /* to the Host */
    "    jmp smp_text_enter\n"
    /* The entries, and beside them a table of where they are. */
    ".set trap, 0\n"
    ".rept 256\n"
    "    .pushsection .rodata.smp_entries, \"a\"\n"
    "    .if trap == 0\n        .balign 4\n        smp_text_entries:\n    .endif\n"
    "    .long 7f - smp_text_begin\n"
    "    .popsection\n"
    "7:\n"
    "    .if trap != 8 && !(trap >= 10 && trap <= 14) && trap != 17\n" /* no error code from the CPU */
    "        pushl $0\n"
    "    .endif\n"
    "    pushl $trap\n"
    "    jmp smp_text_leave\n"
    "    .set trap, trap + 1\n"
    ".endr\n"
    "smp_text_end:\n"
    ".code64\n"
    ".popsection\n");

extern const char smp_text_begin[], smp_text_enter[], smp_text_end[];
extern const uint32_t smp_text_entries[256];

const void *smp_switcher_text(uint32_t *size)
{
    *size = (uint32_t)(smp_text_end - smp_text_begin);
    return smp_text_begin;
}

uint32_t smp_switcher_entry(uint32_t trap)
{
    return smp_text_entries[trap & 255];
}

uint32_t smp_switcher_enter(void)
{
    return (uint32_t)(smp_text_enter - smp_text_begin);
}
