/* What the Guest and the lguest machine have agreed upon: hypercalls and struct lguest_data. */
#ifndef HYPERCALL_H
#define HYPERCALL_H
#include <stdint.h>

enum {
    FLUSH_ASYNC = 0, LGUEST_INIT = 1, SHUTDOWN = 2, NEW_PGTABLE = 4, FLUSH_TLB = 5, LOAD_IDT_ENTRY = 6, SET_STACK = 7, TS = 8,
    SET_CLOCKEVENT = 9, HALT = 10, SET_PMD = 13, SET_PTE = 14, SET_PGD = 15, LOAD_TLS = 16, NOTIFY = 17, LOAD_GDT_ENTRY = 18,
    SEND_INTERRUPTS = 19,
    SMP_INIT = 32, CPU_UP = 33, CPU_DOWN = 34, SEND_IPI = 35, SET_AFFINITY = 36,
};
enum { REASON_POWEROFF = 1, REASON_RESTART = 2 };       /* of SHUTDOWN */
#define ALL_OTHER_CPUS 0xFFFFFFFFu                      /* SEND_IPI */

/* Nothing is returned; a mistake kills the Guest. */
static inline void hypercall(uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("int $0x1f" : : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
}
static inline void hypercall0(uint32_t number) { hypercall(number, 0, 0, 0, 0); }
static inline void hypercall1(uint32_t number, uint32_t a) { hypercall(number, a, 0, 0, 0); }
static inline void hypercall2(uint32_t number, uint32_t a, uint32_t b) { hypercall(number, a, b, 0, 0); }
static inline void hypercall3(uint32_t number, uint32_t a, uint32_t b, uint32_t c) { hypercall(number, a, b, c, 0); }

enum { RING_SLOTS = 64, SLOT_FREE = 0xFF };
struct lguest_data {
    volatile uint32_t irq_enabled;                      /* 0x200: on. Both sides write it */
    volatile uint32_t blocked_interrupts;
    volatile uint32_t cr2;                              /* the Host writes this and the next two */
    volatile uint32_t seconds, nanoseconds;
    volatile uint32_t irq_pending;
    volatile uint8_t status[RING_SLOTS];                /* the asynchronous ring */
    volatile uint32_t calls[RING_SLOTS][5];
    uint32_t reserve_mem, tsc_khz;                      /* the Host's answers to LGUEST_INIT */
    uint32_t noirq_start, noirq_end, kernel_address, syscall_vec;       /* read there */
};
#endif
