/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The local APIC's timer (SDM 11.5.4) and the host timer behind it.
 *
 * The bus clock is 1 GHz: one count is one nanosecond times the divisor.  The
 * only thing that runs is the host timer of the vCPU's own thread; counts are
 * computed when they are read.
 *
 * Everything here is called by the vCPU itself.  The signal handler only sets
 * SMP_EVENT_TIMER and kicks; the vCPU then calls smp_lapic_timer_event(), which
 * decides by the clock whether the timer has expired, so an early, late or
 * doubled signal does no harm.
 *
 * A Guest must not be able to choke its own vCPU.  One-shot and deadline timers
 * expire once for each write by the Guest.  A periodic one is re-armed here, by
 * the vCPU, so signals never pile up, and what was missed is skipped; but the
 * next expiry could always be just ahead.  So periods are at least MIN_PERIOD,
 * and the next expiry at least MIN_GAP away: a signal, its exit and the entry
 * after it cost 3 to 6 us, so the Guest keeps the larger part of its time, and
 * a timer at 50 kHz is still faster than any kernel's.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "lapic.h"
#include <signal.h>

#define MIN_PERIOD 20000u /* ns */
#define MIN_GAP 10000u
#define MAX_DELTA (1ull << 62)

enum timer_mode { ONE_SHOT, PERIODIC, TSC_DEADLINE, RESERVED };

static enum timer_mode mode_of(uint32_t lvt)
{
    return (enum timer_mode)(lvt >> 17 & 3);
}

static enum timer_mode mode(const struct smp_lapic *l)
{
    return mode_of(l->lvt[LVT_TIMER]);
}

/* Divide configuration (figure 11-10): bits 3, 1, 0; 111 divides by one. */
static uint64_t divisor(const struct smp_lapic *l)
{
    uint32_t code = (l->timer_divide >> 1 & 4) | (l->timer_divide & 3);

    return code == 7 ? 1 : 2ull << code;
}

/* At most (2^32 - 1) * 128 ns. */
static uint64_t period(const struct smp_lapic *l)
{
    uint64_t ns = l->timer_initial * divisor(l);

    return mode(l) == PERIODIC && ns < MIN_PERIOD ? MIN_PERIOD : ns;
}

static void set_deadline(struct smp_lapic *l, uint64_t deadline)
{
    l->timer_deadline_ns = deadline;
    smp_timer_arm(deadline);
}

void smp_lapic_timer_off(struct smp_lapic *l)
{
    l->tsc_deadline = 0;
    set_deadline(l, 0);
}

/* The next point of the grid start + n * period that is far enough away: no drift, no backlog. */
static void next_period(struct smp_lapic *l, uint64_t now)
{
    uint64_t length = period(l), deadline = l->timer_deadline_ns;

    deadline += ((now - deadline) / length + 1) * length;
    if (deadline - now < MIN_GAP)
        deadline += length;
    l->timer_start_ns = deadline - length;
    set_deadline(l, deadline);
}

static void expire(struct smp_control *c, uint32_t vcpu, uint64_t now)
{
    struct smp_lapic *l = lapic_of(c, vcpu);

    smp_vcpu(c, vcpu)->counters.timer_fires++;
    if (mode(l) == PERIODIC)
        next_period(l, now);
    else
        smp_lapic_timer_off(l);
    smp_lapic_local(c, vcpu, LVT_TIMER);
}

/* When the Guest's TSC reaches the deadline, in CLOCK_MONOTONIC; rounded up. */
static uint64_t tsc_to_ns(struct smp_control *c, uint64_t tsc, uint64_t guest_tsc, uint64_t now)
{
    unsigned __int128 ns = (unsigned __int128)(tsc - guest_tsc) * 1000000u / (c->tsc_khz ? c->tsc_khz : 1) + 1;

    return now + (ns < MAX_DELTA ? (uint64_t)ns : MAX_DELTA);
}

/* Arm for the deadline; one that is past fires at once.  The kernel steers CLOCK_MONOTONIC
 * against the TSC, so the TSC has the last word when the host timer has expired. */
static void arm_tsc_deadline(struct smp_control *c, uint32_t vcpu)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    uint64_t guest_tsc = smp_guest_tsc(c), now = smp_now_ns();

    if (l->tsc_deadline <= guest_tsc)
        expire(c, vcpu, now);
    else
        set_deadline(l, tsc_to_ns(c, l->tsc_deadline, guest_tsc, now));
}

void smp_lapic_timer_event(struct smp_control *c, uint32_t vcpu)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    uint64_t now = smp_now_ns();

    if (!l->timer_deadline_ns)
        return;
    if (now < l->timer_deadline_ns)
        smp_timer_arm(l->timer_deadline_ns);
    else if (mode(l) == TSC_DEADLINE)
        arm_tsc_deadline(c, vcpu);
    else
        expire(c, vcpu, now);
}

/* ---- registers -------------------------------------------------------------------- */

/* Going to or from TSC-deadline mode disarms (11.5.4.1); so does the reserved mode.
 * Between one-shot and periodic the count goes on. */
void smp_lapic_timer_lvt(struct smp_lapic *l, uint32_t value)
{
    int counted = mode(l) <= PERIODIC, counts = mode_of(value) <= PERIODIC;

    l->lvt[LVT_TIMER] = value;
    if (counted != counts || mode(l) == RESERVED) {
        l->timer_initial = 0;
        smp_lapic_timer_off(l);
    }
}

static void count_from(struct smp_lapic *l, uint64_t now, uint64_t ns)
{
    l->timer_start_ns = now;
    set_deadline(l, now + ns);
}

/* Ignored in TSC-deadline mode; 0 stops the timer. */
void smp_lapic_timer_initial(struct smp_control *c, uint32_t vcpu, uint32_t count)
{
    struct smp_lapic *l = lapic_of(c, vcpu);

    if (mode(l) > PERIODIC)
        return;
    l->timer_initial = count;
    if (count)
        count_from(l, smp_now_ns(), period(l));
    else
        smp_lapic_timer_off(l);
}

uint32_t smp_lapic_timer_current(struct smp_lapic *l)
{
    uint64_t now = smp_now_ns(), left, count;

    if (mode(l) > PERIODIC || !l->timer_deadline_ns)
        return 0;
    if (now < l->timer_deadline_ns)
        left = l->timer_deadline_ns - now;
    else if (mode(l) == PERIODIC) /* expired, and the vCPU has not come to it yet */
        left = period(l) - (now - l->timer_deadline_ns) % period(l);
    else
        return 0;
    count = (left + divisor(l) - 1) / divisor(l);
    return count < l->timer_initial ? (uint32_t)count : l->timer_initial;
}

/* What is left of the count is counted at the new speed. */
void smp_lapic_timer_divide(struct smp_control *c, uint32_t vcpu, uint32_t value)
{
    struct smp_lapic *l = lapic_of(c, vcpu);
    uint64_t left = smp_lapic_timer_current(l);

    l->timer_divide = value & 0xb;
    if (mode(l) <= PERIODIC && l->timer_deadline_ns)
        count_from(l, smp_now_ns(), left * divisor(l));
}

/* IA32_TSC_DEADLINE reads 0 and ignores writes in the other modes (11.5.4.1). */
uint64_t smp_lapic_tsc_deadline(struct smp_lapic *l)
{
    return mode(l) == TSC_DEADLINE ? l->tsc_deadline : 0;
}

void smp_lapic_set_tsc_deadline(struct smp_control *c, uint32_t vcpu, uint64_t deadline)
{
    struct smp_lapic *l = lapic_of(c, vcpu);

    if (mode(l) != TSC_DEADLINE)
        return;
    l->tsc_deadline = deadline;
    if (deadline)
        arm_tsc_deadline(c, vcpu);
    else
        smp_lapic_timer_off(l);
}

/* ---- the host timer of this thread -------------------------------------------------- */

static __thread struct {
    struct smp_control *volatile control; /* NULL: no timer */
    volatile uint32_t vcpu;
    timer_t id;
} host_timer;

/* Atomics and at most one system call: nothing that the interrupted code could be in the middle of. */
static void on_signal(int signal)
{
    struct smp_control *c = host_timer.control;

    (void)signal;
    if (c)
        smp_event(c, host_timer.vcpu, SMP_EVENT_TIMER);
}

static int create_timer(int signal)
{
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signal };

    event._sigev_un._tid = (int)syscall(SYS_gettid);
    return timer_create(CLOCK_MONOTONIC, &event, &host_timer.id) ? -errno : 0;
}

int smp_timer_start(struct smp_control *c, uint32_t vcpu)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    int signal = SIGRTMIN + 1, error;
    sigset_t ours;

    smp_timer_stop();
    sigemptyset(&ours);
    sigaddset(&ours, signal);
    if (sigaction(signal, &action, NULL) || sigprocmask(SIG_UNBLOCK, &ours, NULL))
        return -errno;
    error = create_timer(signal);
    if (error)
        return error;
    host_timer.vcpu = vcpu;
    host_timer.control = c; /* last: also touches this thread's storage before any signal does */
    return 0;
}

void smp_timer_stop(void)
{
    if (!host_timer.control)
        return;
    host_timer.control = NULL;
    timer_delete(host_timer.id);
}

/* A time in the past expires at once.  No timer in this thread: nothing to do. */
void smp_timer_arm(uint64_t deadline_ns)
{
    struct itimerspec when = { .it_value = { (time_t)(deadline_ns / 1000000000u),
                                             (long)(deadline_ns % 1000000000u) } };

    if (host_timer.control)
        timer_settime(host_timer.id, TIMER_ABSTIME, &when, NULL);
}
