/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Interrupt messages: who they are for, who takes them (SDM vol. 3, 11.6 and
 * 11.5.3).  Runs in the sender, be it a vCPU or the Host; lapic.c says what a
 * sender may write in another's APIC.
 */
#include "lapic.h"

#define FIRST_VECTOR 16 /* 0..15 are illegal (11.5.2) */

/* ICR (11.6.1) */
#define ICR_LOGICAL (1u << 11)
#define ICR_ASSERT (1u << 14)
#define ICR_LEVEL (1u << 15)
enum { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };

/* ---- acceptance ------------------------------------------------------------------ */

/* Errors gather until ESR is written, which also arms the error interrupt again
 * (11.5.3): so only the first of them raises it.  That ends the recursion of an
 * error vector that is illegal itself. */
void smp_lapic_error(struct smp_control *c, uint32_t vcpu, uint32_t bits)
{
    if (!__atomic_fetch_or(&lapic_of(c, vcpu)->esr_pending, bits, __ATOMIC_SEQ_CST))
        smp_lapic_local(c, vcpu, LVT_ERROR);
}

static int accept_fixed(struct smp_control *c, uint32_t vcpu, uint32_t vector, uint32_t level)
{
    struct smp_lapic *l = lapic_of(c, vcpu);

    if (!software_enabled(l))
        return 0;
    if (vector < FIRST_VECTOR) {
        smp_lapic_error(c, vcpu, ESR_RECEIVE_ILLEGAL);
        return 0;
    }
    if (level)
        set_bit(l->tmr, vector);
    else
        clear_bit(l->tmr, vector);
    set_bit(l->irr, vector);
    smp_kick(c, vcpu);
    return 1;
}

/* An INIT overtakes a SIPI that was not served yet; a SIPI that is found pending together
 * with an INIT was therefore sent after it. */
static void accept_init(struct smp_control *c, uint32_t vcpu)
{
    __atomic_fetch_and(&smp_vcpu(c, vcpu)->events, ~(uint32_t)SMP_EVENT_SIPI, __ATOMIC_SEQ_CST);
    smp_event(c, vcpu, SMP_EVENT_INIT);
}

/* The first SIPI counts; the receiver ignores one that it does not wait for. */
static void accept_sipi(struct smp_control *c, uint32_t vcpu, uint32_t vector)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);

    if (!(load(&v->events) & SMP_EVENT_SIPI))
        store(&v->lapic.sipi_vector, vector);
    smp_event(c, vcpu, SMP_EVENT_SIPI);
}

/* One message arrives at one APIC; 1 if it took it.  There is no SMM and no 8259 behind
 * LINT0 here, so SMI and ExtINT find nobody. */
static int accept(struct smp_control *c, uint32_t vcpu, uint32_t delivery, uint32_t vector, uint32_t level)
{
    if (!hardware_enabled(lapic_of(c, vcpu)))
        return 0;
    switch (delivery) {
    case SMP_DELIVER_FIXED:
    case SMP_DELIVER_LOWEST:
        return accept_fixed(c, vcpu, vector, level);
    case SMP_DELIVER_NMI:
        smp_event(c, vcpu, SMP_EVENT_NMI);
        return 1;
    case SMP_DELIVER_INIT:
        accept_init(c, vcpu);
        return 1;
    case SMP_DELIVER_SIPI:
        accept_sipi(c, vcpu, vector);
        return 1;
    }
    return 0;
}

void smp_lapic_local(struct smp_control *c, uint32_t vcpu, enum lapic_lvt source)
{
    uint32_t lvt = load(&lapic_of(c, vcpu)->lvt[source]);
    uint32_t delivery = lvt >> 8 & 7;

    if (lvt & LVT_MASKED)
        return;
    if (delivery == SMP_DELIVER_FIXED || delivery == SMP_DELIVER_NMI)
        accept(c, vcpu, delivery, lvt & 0xff, 0);
}

/* ---- destinations ----------------------------------------------------------------- */

/* Logical destination (11.6.2.2): flat, one bit an APIC; cluster, a number and four bits. */
static int matches_logical(const struct smp_lapic *l, uint32_t mda)
{
    uint32_t id = load(&l->ldr) >> 24;

    switch (load(&l->dfr) >> 28) {
    case 0xf:
        return (id & mda) != 0;
    case 0x0:
        return id >> 4 == mda >> 4 && (id & mda & 0xf) != 0;
    }
    return 0;
}

/* The vCPUs a destination field names, as a bit set.  FFH is everybody in both modes. */
static uint32_t destinations(struct smp_control *c, uint32_t destination, uint32_t logical)
{
    uint32_t set = 0, i;

    for (i = 0; i < c->vcpus; i++) {
        struct smp_lapic *l = lapic_of(c, i);

        if (destination == 0xff || (logical ? matches_logical(l, destination) : l->id >> 24 == destination))
            set |= 1u << i;
    }
    return set;
}

/* Lowest priority: whose turn it is among those that would take it. */
static uint32_t choose_one(struct smp_control *c, uint32_t set)
{
    uint32_t turn, i;

    for (i = 0; i < c->vcpus; i++)
        if (!software_enabled(lapic_of(c, i)))
            set &= ~(1u << i);
    if (!set)
        return 0;
    turn = __atomic_fetch_add(&c->lowest_next, 1, __ATOMIC_SEQ_CST) % (uint32_t)__builtin_popcount(set);
    while (turn--)
        set &= set - 1;
    return set & -set;
}

static int deliver(struct smp_control *c, uint32_t set, uint32_t delivery, uint32_t vector, uint32_t level)
{
    int taken = 0;
    uint32_t i;

    if (delivery == SMP_DELIVER_LOWEST)
        set = choose_one(c, set);
    for (i = 0; i < c->vcpus; i++)
        if (set >> i & 1)
            taken += accept(c, i, delivery, vector, level);
    return taken;
}

int smp_deliver(struct smp_control *c, uint32_t destination, uint32_t logical, uint32_t delivery,
                uint32_t vector, uint32_t level)
{
    return deliver(c, destinations(c, destination & 0xff, logical), delivery, vector & 0xff, level);
}

/* Dekker: wanted -> fence -> deliver again, against: register -> fence -> read wanted. */
void smp_want_taker(struct smp_control *c, uint32_t wanted)
{
    store(&c->taker_wanted, wanted);
    fence();
}

/* This APIC's enable bits or its logical address were just written. */
void smp_lapic_may_take(struct smp_control *c, uint32_t vcpu)
{
    fence();
    if (load(&c->taker_wanted))
        smp_post(c, vcpu, SMP_POST_TAKER, 0, 4, 0);
}

/*
 * A write of the ICR's low half sends (11.6.1).  INIT level de-assert synchronised
 * arbitration IDs once; today it does nothing.  Table 11-3 calls self and
 * all-including-self with other modes than fixed invalid without saying what happens:
 * they are delivered as if the destinations had been named.
 */
void smp_lapic_send_ipi(struct smp_control *c, uint32_t vcpu)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    uint32_t icr = l->icr_low, vector = icr & 0xff, delivery = icr >> 8 & 7;
    uint32_t all = (1u << c->vcpus) - 1, self = 1u << vcpu, set = 0;

    if (delivery == SMP_DELIVER_INIT && icr & ICR_LEVEL && !(icr & ICR_ASSERT))
        return;
    if ((delivery == SMP_DELIVER_FIXED || delivery == SMP_DELIVER_LOWEST) && vector < FIRST_VECTOR) {
        smp_lapic_error(c, vcpu, ESR_SEND_ILLEGAL);
        return;
    }
    switch (icr >> 18 & 3) {
    case SHORTHAND_NONE:
        set = destinations(c, l->icr_high >> 24, icr & ICR_LOGICAL);
        break;
    case SHORTHAND_SELF:
        set = self;
        break;
    case SHORTHAND_ALL:
        set = all;
        break;
    case SHORTHAND_OTHERS:
        set = all & ~self;
        break;
    }
    smp_vcpu(c, vcpu)->counters.ipis_sent++;
    deliver(c, set, delivery, vector, 0);
}
