/* What an lguest guest alone has. guest.h includes it. Interrupts are a word in memory here, not a flag of the CPU. */
#ifndef MACHINE_H
#define MACHINE_H
#include "layout.h"
#include "x86.h"
#include "hypercall.h"
#define MACHINE_LGUEST

#define IRQS 32
#define VECTOR_IRQ0 32                                  /* irq n is IDT vector 32 + n */
enum { IRQ_TIMER = 0, IRQ_MAILBOX = 31 };

struct machine_cpu {
    struct lguest_data data;
    volatile uint32_t mail[8];                          /* one bit a vector: those that share IRQ_MAILBOX */
    uint32_t timer_vector;                              /* 0: not armed */
    uint64_t timer_left, timer_armed_at, timer_step;    /* nanoseconds; TSC; nanoseconds */
    bool raw_irqs;                                      /* a test wants irq n as vector 32 + n, and nothing behind it */
};

/* ---- interrupts on and off ----
 * %fs leads to the words of this CPU. Who turns them on asks whether something came meanwhile: the Host has written that
 * to irq_pending, and only a hypercall makes it look again at once. */
static inline uint32_t irq_flag(void)
{
    uint32_t v;
    asm volatile("movl %%fs:%c1, %0" : "=r"(v) : "i"(CPU_IRQ_ENABLED) : "memory");
    return v & 0x200;
}
static inline bool irqs_on(void) { return irq_flag(); }
static inline void cli(void) { asm volatile("movl $0, %%fs:%c0" : : "i"(CPU_IRQ_ENABLED) : "memory"); }
static inline void sti(void)
{
    uint32_t pending;
    asm volatile("movl $0x200, %%fs:%c1; xorl %0, %0; xchgl %0, %%fs:%c2" : "=&r"(pending)
                 : "i"(CPU_IRQ_ENABLED), "i"(CPU_IRQ_PENDING) : "memory", "cc");
    if (pending)
        hypercall0(SEND_INTERRUPTS);
}
static inline reg_t irq_save(void) { reg_t f = irq_flag(); cli(); return f; }
static inline void irq_restore(reg_t f) { if (f) sti(); }
/* HALT turns interrupts on when it ends, and does not begin when one is due: nothing can slip in between. */
static inline void sti_hlt(void) { hypercall0(HALT); }
static inline void stand_still(void) { asm volatile("pause"); }

/* ---- page faults and TLB ---- */
reg_t fault_address(void);
void drop_page(const volatile void *p);                 /* of this CPU's TLB */
void drop_all_pages(void);

/* ---- descriptor tables (tables.c) ---- */
struct cpu;
enum { GATE_INTERRUPT = 0xE, GATE_TRAP = 0xF };         /* GATE_TRAP may be taken directly, without the Host */
void idt_gate(uint32_t vector, uint32_t dpl, uint32_t type);    /* to the usual stub, on this CPU alone */
void idt_set(uint32_t vector, const void *entry, uint32_t dpl, uint32_t type);
void gdt_set(uint32_t entry, uint64_t descriptor);
void setup_cpu_tables(struct cpu *c);

/* ---- memory (pages.c) ---- */
#define FREE_VA 0xF0000000ul                            /* 240 MB of addresses with no memory or device behind them */
/* What virtual is above physical: 0, or 0xC0000000 in an image that is linked high. It is a symbol's address, hidden from a
   compiler that believes no address to be 0. */
static inline uint32_t page_offset(void) { uint32_t v; asm("movl $page_offset, %0" : "=r"(v)); return v; }
static inline uint32_t pa(const volatile void *p) { return (uint32_t)(uintptr_t)p - page_offset(); }
static inline void *va(uint32_t physical) { return (void *)(uintptr_t)(physical + page_offset()); }
extern bool paging;                                     /* false: linear, as the Guest began */
extern const bool starts_linear;                        /* what a guest wants; "linear" on the command line does the same */
void setup_memory(void);
void setup_paging(void);                                /* makes the tables, uses them on this CPU */

/* ---- for the tests of the machine itself: weak, so a guest may have them or not (boot.S, start.c) ---- */
void before_init(void);                                 /* on CPU 0, before LGUEST_INIT, linear images only */
void before_smp(void);                                  /* on CPU 0, before SMP_INIT */

/* ---- the rest ---- */
extern uint32_t smp_version;                            /* 0: the machine does not offer the SMP extension */
void setup_time(void);
static inline void irq_done(void) { }                   /* there is nothing to acknowledge */
static inline volatile uint32_t *slow_word(void) { static volatile uint32_t word; return &word; }
#endif
