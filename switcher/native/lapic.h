/* SPDX-License-Identifier: GPL-2.0-only */
/* What lapic.c and lapic_timer.c tell each other.  References: Intel SDM vol. 3, chapter 11. */
#ifndef SMPGUEST_LAPIC_H
#define SMPGUEST_LAPIC_H
#include "words.h"

/* Index into smp_lapic.lvt[]. */
enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_CMCI, LVTS };

#define LVT_MASKED (1u << 16)
#define SVR_ENABLED (1u << 8)
/* ESR (11.5.3) */
#define ESR_SEND_ILLEGAL (1u << 5)
#define ESR_RECEIVE_ILLEGAL (1u << 6)
#define ESR_REGISTER_ILLEGAL (1u << 7)
#define APIC_BASE_BSP (1ull << 8)
#define APIC_BASE_ENABLED (1ull << 11)

static inline struct smp_lapic *lapic_of(struct smp_control *c, uint32_t vcpu)
{
    return &smp_vcpu(c, vcpu)->lapic;
}

/* Sets of vectors: irr, tmr, isr. */
static inline void set_bit(uint32_t *set, uint32_t vector)
{
    __atomic_fetch_or(&set[vector >> 5], 1u << (vector & 31), __ATOMIC_SEQ_CST);
}

static inline void clear_bit(uint32_t *set, uint32_t vector)
{
    __atomic_fetch_and(&set[vector >> 5], ~(1u << (vector & 31)), __ATOMIC_SEQ_CST);
}

static inline int hardware_enabled(const struct smp_lapic *l)
{
    return (__atomic_load_n(&l->apic_base, __ATOMIC_SEQ_CST) & APIC_BASE_ENABLED) != 0;
}

static inline int software_enabled(const struct smp_lapic *l)
{
    return hardware_enabled(l) && load(&l->svr) & SVR_ENABLED;
}

/* ipi.c.  Errors gather until the Guest writes ESR. */
void smp_lapic_error(struct smp_control *c, uint32_t vcpu, uint32_t bits);
/* The ICR's low half was written. */
void smp_lapic_send_ipi(struct smp_control *c, uint32_t vcpu);
/* What decides whether this APIC takes a message was written. */
void smp_lapic_may_take(struct smp_control *c, uint32_t vcpu);
/* A local source (the timer, an error) asserts its LVT entry. */
void smp_lapic_local(struct smp_control *c, uint32_t vcpu, enum lapic_lvt source);

/* lapic_timer.c */
void smp_lapic_timer_off(struct smp_lapic *l);
void smp_lapic_timer_lvt(struct smp_lapic *l, uint32_t value);
void smp_lapic_timer_initial(struct smp_control *c, uint32_t vcpu, uint32_t count);
void smp_lapic_timer_divide(struct smp_control *c, uint32_t vcpu, uint32_t value);
uint32_t smp_lapic_timer_current(struct smp_lapic *l);
uint64_t smp_lapic_tsc_deadline(struct smp_lapic *l);
void smp_lapic_set_tsc_deadline(struct smp_control *c, uint32_t vcpu, uint64_t deadline);
#endif
