/* Numbers that both the assembly and the C files need. */
#ifndef LAYOUT_H
#define LAYOUT_H

/* Selectors. The order from 0x08 to 0x30 is what SYSENTER/SYSEXIT and SYSCALL/SYSRET expect (SDM vol. 3, 5.8.7). */
#define SEL_KCODE   0x08
#define SEL_KDATA   0x10
#define SEL_UCODE32 0x18
#define SEL_UDATA   0x20
#define SEL_UCODE64 0x28
#define SEL_UDATA2  0x30
#define SEL_PERCPU  0x38        /* a data segment whose base is this CPU's struct cpu; lives in %fs */
#define SEL_TSS     0x40        /* two slots in long mode */
#define SEL_FREE    0x50        /* 0x50 … 0x78 are at the guest's disposal */
#define GDT_SLOTS   16

#define TRAMPOLINE  0x8000      /* where APs wake up: page 8, so the SIPI vector is 8 */
#define STACK_SIZE  0x4000
#define CR0_BITS    0x80010033  /* PG WP NE ET MP PE */

#endif
