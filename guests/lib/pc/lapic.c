/* The local APIC in xAPIC mode: set-up, IPIs, timer. */
#include "guest.h"

volatile uint32_t *lapic_base = (volatile uint32_t *)0xFEE00000ul;

static void handle_wake(struct trap *t) { (void)t; lapic_eoi(); }       /* its work is done by ending the HLT */
static void handle_spurious(struct trap *t) { (void)t; }                /* SDM: no EOI for the spurious vector */

void lapic_setup(void)
{
    uint64_t base = rdmsr(0x1B);
    lapic_base = (volatile uint32_t *)(uintptr_t)(base & 0xFFFFF000u);
    wrmsr(0x1B, base | 0x800);                          /* globally enabled */
    on_vector(VECTOR_WAKE, handle_wake);
    on_vector(VECTOR_TICK, handle_wake);
    on_vector(VECTOR_SPURIOUS, handle_spurious);
    lapic_write(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
    lapic_write(LAPIC_LVT_TIMER, TIMER_MASKED | VECTOR_TICK);
    lapic_write(LAPIC_LVT_LINT0, 0x10000);              /* nothing from the old PIC */
    lapic_write(LAPIC_LVT_LINT1, 0x10000);
    lapic_write(LAPIC_LVT_ERROR, 0x10000);
    lapic_write(LAPIC_DFR, 0xFFFFFFFF);                 /* flat logical mode, one bit a CPU */
    lapic_write(LAPIC_LDR, cpu_index() < 8 ? 1u << (24 + cpu_index()) : 0);
    lapic_write(LAPIC_TPR, 0);
}

void lapic_eoi(void) { lapic_write(LAPIC_EOI, 0); }

void lapic_icr(uint32_t destination, uint32_t low)
{
    reg_t flags = irq_save();                           /* a handler's own IPI must not come between the halves */
    lapic_write(LAPIC_ICR_HIGH, destination << 24);
    lapic_write(LAPIC_ICR, low);
    for (uint32_t i = 0; lapic_read(LAPIC_ICR) & ICR_PENDING; i++) {
        check(i < 100000000, "CPU %u: an IPI (ICR %x) was never delivered", cpu_index(), low);
        pause();
    }
    irq_restore(flags);
}

void ipi(uint32_t cpu, uint32_t vector) { lapic_icr(cpus[cpu].m.apic_id, ICR_FIXED | ICR_ASSERT | vector); }
void ipi_nmi(uint32_t cpu) { lapic_icr(cpus[cpu].m.apic_id, ICR_NMI | ICR_ASSERT); }

void lapic_timer(uint32_t mode, uint32_t vector, uint32_t count, uint32_t divide)
{
    lapic_write(LAPIC_TIMER_INIT, 0);                   /* stopped while it changes: QEMU revives an expired one-shot
                                                           whose divider grows */
    lapic_write(LAPIC_TIMER_DIVIDE, divide);
    lapic_write(LAPIC_LVT_TIMER, mode | vector);
    lapic_write(LAPIC_TIMER_INIT, count);
}

/* The finest divider with which the count fits. */
void timer_start(uint32_t vector, uint64_t ns)
{
    static const struct { uint32_t divide, shift; } dividers[] = { { DIVIDE_BY_1, 0 }, { DIVIDE_BY_16, 4 }, { DIVIDE_BY_128, 7 } };
    uint64_t count = mul_div(ns, lapic_khz, 1000000);
    uint32_t d = 0;
    while (count >> dividers[d].shift > 0xFFFFFFFF && d < 2)
        d++;
    count >>= dividers[d].shift;
    lapic_timer(TIMER_ONESHOT, vector, count > 0xFFFFFFFF ? 0xFFFFFFFF : count ? (uint32_t)count : 1, dividers[d].divide);
}

void timer_stop(void) { lapic_timer(TIMER_MASKED, VECTOR_TICK, 0, DIVIDE_BY_1); }

void ipi_others(uint32_t vector) { lapic_icr(0, ICR_OTHERS | ICR_ASSERT | vector); }
void ipi_all(uint32_t vector) { lapic_icr(0, ICR_ALL | ICR_ASSERT | vector); }
void ipi_self(uint32_t vector) { lapic_icr(0, ICR_SELF | ICR_ASSERT | vector); }

bool has_tsc_deadline(void) { return cpuid(1, 0).ecx >> 24 & 1; }
