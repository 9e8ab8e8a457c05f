/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Interrupts of the lguest machine, as far as others have a part in them: a
 * bitmap a vCPU, a one-shot clock, and which vCPU a device interrupts.  Whether
 * and when the Guest takes one is its own vCPU's business (vcpu/lguest).
 *
 * irqs_pending against sleep and run: the sender sets the bit, then the event,
 * then kicks (smp_event); the owner takes the events first (smp_take_irqs) and
 * reads the bits, and `pause` and `up`, afterwards.  What is set after that
 * reading comes with an event that is still there, so neither smp_sleep() nor
 * the Guest goes on for long.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "words.h"

void smp_set_interrupt(struct smp_control *c, uint32_t vcpu, uint32_t irq)
{
    if (vcpu >= c->vcpus || irq >= LGUEST_IRQS)
        return;
    __atomic_fetch_or(&smp_vcpu(c, vcpu)->irqs_pending, 1u << irq, __ATOMIC_SEQ_CST);
    smp_event(c, vcpu, SMP_EVENT_IRQ);
}

void smp_device_interrupt(struct smp_control *c, uint32_t irq)
{
    if (irq < LGUEST_IRQS)
        smp_set_interrupt(c, load(&c->irq_vcpu[irq]), irq);
}

void smp_clear_irq(struct smp_control *c, uint32_t vcpu, uint32_t irq)
{
    __atomic_fetch_and(&smp_vcpu(c, vcpu)->irqs_pending, ~(1u << irq), __ATOMIC_SEQ_CST);
}

uint32_t smp_take_irqs(struct smp_control *c, uint32_t vcpu)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint32_t events = load(&v->events) ? __atomic_exchange_n(&v->events, 0, __ATOMIC_SEQ_CST) : 0;

    /* A pause that was asked for after the owner last looked: the event that announced it must still bring
     * the vCPU out (smp_pause() stores `pause` first, so who took the event sees it). */
    if (events & SMP_EVENT_STOP && load(&v->pause))
        __atomic_fetch_or(&v->events, SMP_EVENT_STOP, __ATOMIC_SEQ_CST);
    if (!(events & SMP_EVENT_TIMER) || !v->clock_ns)
        return load(&v->irqs_pending);
    if (smp_now_ns() < v->clock_ns) {
        smp_timer_arm(v->clock_ns); /* it was smp_look_again()'s */
    } else {
        v->clock_ns = 0;
        v->counters.timer_fires++;
        __atomic_fetch_or(&v->irqs_pending, 1u, __ATOMIC_SEQ_CST);
    }
    return load(&v->irqs_pending);
}

void smp_look_again(struct smp_control *c, uint32_t vcpu, uint64_t delta_ns)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint64_t at = delta_ns ? smp_now_ns() + delta_ns : v->clock_ns;

    smp_timer_arm(v->clock_ns && v->clock_ns < at ? v->clock_ns : at);
}

void smp_set_clock(struct smp_control *c, uint32_t vcpu, uint64_t delta_ns)
{
    smp_vcpu(c, vcpu)->clock_ns = delta_ns ? smp_now_ns() + delta_ns : 0;
    smp_look_again(c, vcpu, 0);
}

/* `up` goes 0 -> 1 -> 2: the one who claims it fills in where to start before the vCPU may look. */
int smp_vcpu_up(struct smp_control *c, uint32_t vcpu, uint32_t eip, uint32_t argument)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint32_t down = 0;

    if (vcpu >= c->vcpus ||
        !__atomic_compare_exchange_n(&v->up, &down, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return 0;
    v->start_eip = eip;
    v->start_esi = argument;
    store(&v->up, 2);
    smp_event(c, vcpu, SMP_EVENT_UP);
    return 1;
}
