/* Numbers that both the assembly and the C files need. */
#ifndef LAYOUT_H
#define LAYOUT_H

/* Selectors. The kernel's are given by the Host and run in ring 1. The others are free to choose: anything but 10, 11, 16
   and 31 (the Switcher's own), 6 to 8 (TLS). */
#define SEL_KCODE   0x61        /* entry 12 */
#define SEL_KDATA   0x69        /* entry 13 */
#define SEL_UCODE32 0x70        /* entry 14; used with | 3 */
#define SEL_UDATA   0x78        /* entry 15 */
#define SEL_PERCPU  0xD9        /* entry 27: base is this CPU's struct cpu; lives in %fs in ring 1 */
#define SEL_FREE    0xA0        /* 0xA0 … 0xB8, entries 20 to 23, are at the guest's disposal */
#define GDT_SLOTS   32

#define STACK_SIZE  0x4000

/* struct cpu as the assembly sees it: machine.c holds these numbers against the C side. */
#define CPU_STACK_TOP   8
#define CPU_DATA        12      /* struct lguest_data, the first thing in struct machine_cpu, and what is in it: */
#define CPU_IRQ_ENABLED (CPU_DATA + 0)
#define CPU_BLOCKED     (CPU_DATA + 4)
#define CPU_IRQ_PENDING (CPU_DATA + 0x14)
#define CPU_STATUS      (CPU_DATA + 0x18)
#define CPU_NOIRQ       (CPU_DATA + 0x560)      /* start, end, then kernel_address and syscall_vec */

#endif
