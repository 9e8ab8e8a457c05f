/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The local APIC in xAPIC mode (Intel SDM vol. 3, chapter 11; section numbers
 * below are its): registers, priorities, MSRs.  Messages between APICs are in
 * ipi.c, the timer is in lapic_timer.c.
 *
 * Who writes what.  Senders, in whatever process, set bits in irr, tmr,
 * esr_pending and events, and kick; everything else belongs to the vCPU itself.
 * A sender writes tmr, then irr, then kicks; the owner reads irr, then tmr.
 * After any write here the owner asks smp_lapic_pending() again: registers that
 * change it (TPR, EOI, SVR) raise no event of their own.
 *
 * The Guest may write anything anywhere: each register keeps only the bits that
 * exist, vectors are 8 bits by construction, and no shift depends on more.
 * Accesses are 32 bits wide and 16-byte aligned (11.4.1); others are the
 * caller's business, and read 0 or do nothing here.
 */
#include "lapic.h"

/* Version 14h, seven LVT entries, no EOI-broadcast suppression (11.4.8). */
#define VERSION (0x14u | (LVTS - 1) << 16)

#define ICR_WRITABLE 0x000ccfffu /* delivery status reads 0 */

/* The bits of each LVT entry that can be written (11.5.1): vector, delivery mode, polarity,
 * trigger mode, mask, timer mode.  Delivery status and remote IRR read 0. */
static const uint32_t lvt_writable[LVTS] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff, [LVT_LINT0] = 0x1a7ff,
    [LVT_LINT1] = 0x1a7ff, [LVT_ERROR] = 0x100ff,   [LVT_CMCI] = 0x107ff,
};

/* ---- vectors and priorities ----------------------------------------------------- */

static int has_bit(const uint32_t *set, uint32_t vector)
{
    return load(&set[vector >> 5]) >> (vector & 31) & 1;
}

static int highest(const uint32_t *set)
{
    int word;

    for (word = 7; word >= 0; word--) {
        uint32_t bits = load(&set[word]);

        if (bits)
            return word * 32 + 31 - __builtin_clz(bits);
    }
    return -1;
}

/* Processor priority (11.8.3.1): the higher of TPR and the class of what is in service. */
static uint32_t processor_priority(const struct smp_lapic *l)
{
    int in_service = highest(l->isr);
    uint32_t class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;

    return (l->tpr & 0xf0) >= class ? l->tpr : class;
}

/* Arbitration priority, as the Pentium had it; nothing here arbitrates by it. */
static uint32_t arbitration_priority(const struct smp_lapic *l)
{
    int requested = highest(l->irr);
    uint32_t ppr = processor_priority(l), class = requested < 0 ? 0 : (uint32_t)requested & 0xf0;

    return (l->tpr & 0xf0) >= class && (l->tpr & 0xf0) > (ppr & 0xf0) ? l->tpr : class > ppr ? class : ppr;
}

/* Dispatching (11.8.3): a vector is delivered when its class is above the processor's
 * priority.  A software-disabled APIC holds what it has already accepted (11.4.7.2),
 * which can still be delivered. */
int smp_lapic_pending(struct smp_control *c, uint32_t vcpu)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    int vector = highest(l->irr);

    if (vector < 0 || !hardware_enabled(l))
        return -1;
    return ((uint32_t)vector & 0xf0) > (processor_priority(l) & 0xf0) ? vector : -1;
}

/* The processor's acknowledge cycle.  Between its decision and now TPR may have risen:
 * then the spurious vector, which enters no ISR bit (11.9). */
int smp_lapic_ack(struct smp_control *c, uint32_t vcpu)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    int vector = smp_lapic_pending(c, vcpu);

    if (vector < 0)
        return (int)(l->svr & 0xff);
    /* Cleared first: one that is sent from here on is a new interrupt. */
    clear_bit(l->irr, (uint32_t)vector);
    set_bit(l->isr, (uint32_t)vector);
    smp_vcpu(c, vcpu)->counters.interrupts++;
    return vector;
}

/* The I/O APIC waits for the EOI of a level-triggered interrupt: the Host has it. */
static void end_of_interrupt(struct smp_control *c, uint32_t vcpu)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    int vector = highest(l->isr);

    if (vector < 0)
        return;
    clear_bit(l->isr, (uint32_t)vector);
    if (has_bit(l->tmr, (uint32_t)vector))
        smp_post(c, vcpu, SMP_POST_EOI, (uint64_t)vector, 4, 0);
}

/* ---- registers --------------------------------------------------------------------- */

/* Offset of an LVT entry (table 11-1) -> its index, or -1. */
static int lvt_index(uint32_t offset)
{
    switch (offset) {
    case 0x2f0:
        return LVT_CMCI;
    case 0x320:
        return LVT_TIMER;
    case 0x330:
        return LVT_THERMAL;
    case 0x340:
        return LVT_PERF;
    case 0x350:
        return LVT_LINT0;
    case 0x360:
        return LVT_LINT1;
    case 0x370:
        return LVT_ERROR;
    }
    return -1;
}

uint32_t smp_lapic_read(struct smp_control *c, uint32_t vcpu, uint32_t offset)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    int lvt = lvt_index(offset &= 0xfff);

    if (!hardware_enabled(l))
        return 0xffffffff; /* nobody answers */
    if (offset & 0xf)
        return 0;
    if (lvt >= 0)
        return l->lvt[lvt];
    if (offset >= 0x100 && offset < 0x180)
        return l->isr[(offset >> 4) & 7];
    if (offset >= 0x180 && offset < 0x200)
        return load(&l->tmr[(offset >> 4) & 7]);
    if (offset >= 0x200 && offset < 0x280)
        return load(&l->irr[(offset >> 4) & 7]);
    switch (offset) {
    case 0x020:
        return l->id;
    case 0x030:
        return VERSION;
    case 0x080:
        return l->tpr;
    case 0x090:
        return arbitration_priority(l);
    case 0x0a0:
        return processor_priority(l);
    case 0x0b0: /* EOI: write only */
    case 0x0c0: /* remote read: nothing was read */
        return 0;
    case 0x0d0:
        return l->ldr;
    case 0x0e0:
        return l->dfr;
    case 0x0f0:
        return l->svr;
    case 0x280:
        return l->esr;
    case 0x300:
        return l->icr_low;
    case 0x310:
        return l->icr_high;
    case 0x380:
        return l->timer_initial;
    case 0x390:
        return smp_lapic_timer_current(l);
    case 0x3e0:
        return l->timer_divide;
    }
    smp_lapic_error(c, vcpu, ESR_REGISTER_ILLEGAL);
    return 0;
}

/* Clearing the enable bit masks every LVT entry, and they stay so (11.4.7.2). */
static void write_svr(struct smp_lapic *l, uint32_t value)
{
    int i;

    store(&l->svr, value & 0x1ff);
    if (!(value & SVR_ENABLED))
        for (i = 0; i < LVTS; i++)
            l->lvt[i] |= LVT_MASKED;
}

static void write_lvt(struct smp_lapic *l, int index, uint32_t value)
{
    value &= lvt_writable[index];
    if (!(l->svr & SVR_ENABLED))
        value |= LVT_MASKED;
    if (index == LVT_TIMER)
        smp_lapic_timer_lvt(l, value);
    else
        store(&l->lvt[index], value);
}

/* The ID register is one that "some processors" let software write; ours do not (11.4.6). */
void smp_lapic_write(struct smp_control *c, uint32_t vcpu, uint32_t offset, uint32_t value)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    int lvt = lvt_index(offset &= 0xfff);

    if (!hardware_enabled(l) || offset & 0xf)
        return;
    if (lvt >= 0) {
        write_lvt(l, lvt, value);
        return;
    }
    if (offset >= 0x100 && offset < 0x280) /* ISR, TMR, IRR: read only */
        return;
    switch (offset) {
    case 0x020: /* ID, version, APR, PPR, remote read, current count: read only */
    case 0x030:
    case 0x090:
    case 0x0a0:
    case 0x0c0:
    case 0x390:
        return;
    case 0x080:
        smp_lapic_set_tpr(c, vcpu, value);
        return;
    case 0x0b0:
        end_of_interrupt(c, vcpu);
        return;
    case 0x0d0:
        store(&l->ldr, value & 0xff000000);
        smp_lapic_may_take(c, vcpu);
        return;
    case 0x0e0:
        store(&l->dfr, value | 0x0fffffff);
        smp_lapic_may_take(c, vcpu);
        return;
    case 0x0f0:
        write_svr(l, value);
        smp_lapic_may_take(c, vcpu);
        return;
    case 0x280: /* any value: latch what has gathered and start anew */
        l->esr = __atomic_exchange_n(&l->esr_pending, 0, __ATOMIC_SEQ_CST);
        return;
    case 0x300:
        l->icr_low = value & ICR_WRITABLE;
        smp_lapic_send_ipi(c, vcpu);
        return;
    case 0x310:
        l->icr_high = value & 0xff000000;
        return;
    case 0x380:
        smp_lapic_timer_initial(c, vcpu, value);
        return;
    case 0x3e0:
        smp_lapic_timer_divide(c, vcpu, value);
        return;
    }
    smp_lapic_error(c, vcpu, ESR_REGISTER_ILLEGAL);
}

uint32_t smp_lapic_tpr(struct smp_control *c, uint32_t vcpu)
{
    return lapic_of(c, vcpu)->tpr;
}

void smp_lapic_set_tpr(struct smp_control *c, uint32_t vcpu, uint32_t tpr)
{
    lapic_of(c, vcpu)->tpr = tpr & 0xff;
}

/* ---- reset and MSRs ------------------------------------------------------------------ */

/* Table 11-1 and 11.4.7.1; what stays is the ID and IA32_APIC_BASE. */
static void reset_registers(struct smp_lapic *l)
{
    int i;

    for (i = 0; i < 8; i++) {
        store(&l->irr[i], 0);
        store(&l->tmr[i], 0);
        store(&l->isr[i], 0);
    }
    for (i = 0; i < LVTS; i++)
        store(&l->lvt[i], LVT_MASKED);
    l->tpr = 0;
    store(&l->ldr, 0);
    store(&l->dfr, 0xffffffff);
    store(&l->svr, 0xff);
    l->esr = 0;
    store(&l->esr_pending, 0);
    l->icr_low = l->icr_high = 0;
    l->timer_initial = l->timer_divide = 0;
    smp_lapic_timer_off(l);
}

/* Power-on, or INIT (11.4.7.3).  After either the bootstrap processor runs and the others
 * wait for SIPI. */
void smp_lapic_reset(struct smp_control *c, uint32_t vcpu, uint32_t power_on)
{
    struct smp_lapic *l = lapic_of(c, vcpu);

    if (power_on) {
        l->id = vcpu << 24;
        l->apic_base = SMP_LAPIC_BASE | APIC_BASE_ENABLED | (vcpu == 0 ? APIC_BASE_BSP : 0);
        store(&l->sipi_vector, 0);
    }
    reset_registers(l);
    store(&l->wait_sipi, !(l->apic_base & APIC_BASE_BSP));
}

/* IA32_APIC_BASE (11.4.4).  Moving the registers and x2APIC are refused with #GP for now;
 * the BSP flag cannot be changed.  Disabling resets (11.4.3): enabling starts afresh. */
static void write_apic_base(struct smp_lapic *l, uint64_t value, int *fault)
{
    uint64_t fixed = value & ~(APIC_BASE_BSP | APIC_BASE_ENABLED);

    if (fixed != SMP_LAPIC_BASE) {
        *fault = 1;
        return;
    }
    value = fixed | (value & APIC_BASE_ENABLED) | (l->apic_base & APIC_BASE_BSP);
    __atomic_store_n(&l->apic_base, value, __ATOMIC_SEQ_CST);
    if (!hardware_enabled(l))
        reset_registers(l);
}

/* *fault is only ever set: the caller raises #GP(0). */
uint64_t smp_lapic_msr_read(struct smp_control *c, uint32_t vcpu, uint32_t msr, int *fault)
{
    switch (msr) {
    case 0x1b:
        return lapic_of(c, vcpu)->apic_base;
    case 0x6e0:
        return smp_lapic_tsc_deadline(lapic_of(c, vcpu));
    }
    *fault = 1;
    return 0;
}

void smp_lapic_msr_write(struct smp_control *c, uint32_t vcpu, uint32_t msr, uint64_t value, int *fault)
{
    switch (msr) {
    case 0x1b:
        write_apic_base(lapic_of(c, vcpu), value, fault);
        return;
    case 0x6e0:
        smp_lapic_set_tsc_deadline(c, vcpu, value);
        return;
    }
    *fault = 1;
}
