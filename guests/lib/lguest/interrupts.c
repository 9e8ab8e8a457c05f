/* Which vector an interrupt is: 32 irqs stand for the 256 vectors that guests think in. */
#include "guest.h"

#define IN_CPU(field) offsetof(struct cpu, m.data.field)
_Static_assert(offsetof(struct cpu, stack_top) == CPU_STACK_TOP && IN_CPU(irq_enabled) == CPU_IRQ_ENABLED
               && IN_CPU(blocked_interrupts) == CPU_BLOCKED && IN_CPU(irq_pending) == CPU_IRQ_PENDING && IN_CPU(status) == CPU_STATUS
               && IN_CPU(noirq_start) == CPU_NOIRQ && sizeof(struct lguest_data) == 1392, "layout.h has these numbers");

void machine_trap(struct trap *t);

/* ---- IPIs ----
 * A vector that is sent for the first time gets an irq of its own, from 30 down: devices count from 1 up. When there is
 * none left, the vector goes as a bit in the receiver's mailbox, and the interrupt says only "look there". */
enum { LAST_IRQ = 30, FIRST_IRQ = 16, NOT_YET = 0 };
static volatile uint8_t irq_of[256], vector_of[IRQS];
static struct lock irq_lock;

static uint32_t irq_for(uint32_t vector)
{
    static uint32_t next = LAST_IRQ;
    if (irq_of[vector] != NOT_YET)
        return irq_of[vector];
    reg_t flags = irq_save();
    lock(&irq_lock);
    if (irq_of[vector] == NOT_YET) {
        uint32_t irq = next >= FIRST_IRQ ? next-- : IRQ_MAILBOX;
        vector_of[irq] = (uint8_t)vector;
        compiler_barrier();                             /* who finds irq_of set may send at once */
        irq_of[vector] = (uint8_t)irq;
    }
    unlock(&irq_lock);
    irq_restore(flags);
    return irq_of[vector];
}

static void put_in_mailbox(uint32_t cpu, uint32_t vector)
{
    __atomic_fetch_or(&cpus[cpu].m.mail[vector / 32], 1u << vector % 32, __ATOMIC_SEQ_CST);
}

void ipi(uint32_t cpu, uint32_t vector)
{
    uint32_t irq = irq_for(vector);
    check(smp_version || cpu != cpu_index(), "an interrupt to oneself needs the SMP extension");
    if (irq == IRQ_MAILBOX)
        put_in_mailbox(cpu, vector);
    hypercall2(SEND_IPI, cpu, irq);
}

void ipi_self(uint32_t vector) { ipi(cpu_index(), vector); }

void ipi_others(uint32_t vector)
{
    uint32_t irq = irq_for(vector);
    if (irq == IRQ_MAILBOX)
        for (uint32_t i = 0; i < ncpus; i++)
            if (i != cpu_index())
                put_in_mailbox(i, vector);
    hypercall2(SEND_IPI, ALL_OTHER_CPUS, irq);
}

void ipi_all(uint32_t vector)
{
    ipi_others(vector);
    ipi_self(vector);
}

static void open_mailbox(struct trap *t)
{
    struct machine_cpu *m = &this_cpu()->m;
    for (int word = 7; word >= 0; word--) {             /* the highest first, as an APIC does */
        uint32_t bits = __atomic_exchange_n(&m->mail[word], 0, __ATOMIC_SEQ_CST);
        while (bits) {
            uint32_t bit = 31 - (uint32_t)__builtin_clz(bits);
            bits &= ~(1u << bit);
            t->vector = 32 * (uint32_t)word + bit;
            trap_dispatch(t);
        }
    }
}

/* ---- the timer: one shot, 32 bits of nanoseconds; longer times are made of several ---- */

static void arm(struct machine_cpu *m)
{
    uint64_t step = m->timer_left > 4000000000u ? 4000000000u : m->timer_left;
    m->timer_step = step;
    m->timer_left -= step;
    m->timer_armed_at = rdtsc();
    hypercall1(SET_CLOCKEVENT, (uint32_t)step);
}

void timer_start(uint32_t vector, uint64_t ns)
{
    reg_t flags = irq_save();
    struct machine_cpu *m = &this_cpu()->m;
    m->timer_left = ns ? ns : 1;
    m->timer_vector = vector;
    arm(m);
    irq_restore(flags);
}

void timer_stop(void)
{
    this_cpu()->m.timer_vector = 0;
    hypercall1(SET_CLOCKEVENT, 0);
}

static void timer_irq(struct trap *t)
{
    struct machine_cpu *m = &this_cpu()->m;
    /* The interrupt of a timer that was stopped or replaced may have been on its way. Less than half the time gone: that is
       such a one. (Nothing is hidden by that: if it was ours and this early, then ours will be missing.) */
    uint64_t gone = rdtsc() - m->timer_armed_at;
    if (!m->timer_vector || gone < div64(m->timer_step * tsc_khz, 2000000))
        return;
    if (m->timer_left) {
        arm(m);
        return;
    }
    t->vector = m->timer_vector;
    m->timer_vector = 0;
    trap_dispatch(t);
}

/* ---- every trap comes by here ---- */

void machine_trap(struct trap *t)
{
    uint32_t irq = (uint32_t)t->vector - VECTOR_IRQ0;
    if (this_cpu()->m.raw_irqs)
        trap_dispatch(t);
    else if (irq == IRQ_TIMER)
        timer_irq(t);
    else if (irq == IRQ_MAILBOX)
        open_mailbox(t);
    else {
        if (irq < IRQS && vector_of[irq])
            t->vector = vector_of[irq];
        trap_dispatch(t);
    }
}

reg_t fault_address(void) { return this_cpu()->m.data.cr2; }
