/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The control block: layout, life and death, kicks and sleep, pause, who is in
 * the Guest.  words.h has the rules of waiting.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "words.h"
#include <cpuid.h>
#include <pthread.h>
#include <string.h>

#define PAGE 4096ull
#define PORTS 65536u
#define MAX_RAM (1ull << 40)
#define MAX_CPU_STATE (1ull << 24)
#define DEFAULT_SPIN_NS 20000

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct smp_control *)0)->mutex), "mutex fits");
_Static_assert(SMP_SITES == sizeof(((struct smp_control *)0)->locks) / sizeof(struct smp_lock_stats), "sites");
_Static_assert(SMP_RING == sizeof(((struct smp_vcpu *)0)->ring) / sizeof(uint64_t), "ring");
_Static_assert(SMP_MMIO_RANGES == sizeof(((struct smp_control *)0)->mmio) / sizeof(struct smp_mmio_range), "mmio");
_Static_assert(SMP_BINDINGS == sizeof(((struct smp_control *)0)->bindings) / sizeof(struct smp_binding), "bindings");
_Static_assert(SMP_TEXT == sizeof(((struct smp_control *)0)->dead_text) &&
               SMP_TEXT == sizeof(((struct smp_vcpu *)0)->last_error), "texts");
_Static_assert((SMP_POSTED & (SMP_POSTED - 1)) == 0, "tickets wrap at a multiple of the ring");

/* ---- layout ------------------------------------------------------------------ */

static uint64_t pages(uint64_t bytes)
{
    return (bytes + PAGE - 1) & ~(PAGE - 1);
}

/* Fills in every offset and the size; 0 if the machine asked for cannot be. */
static uint64_t lay_out(struct smp_control *c, uint32_t vcpus, uint64_t ram_size, uint64_t cpu_state_size)
{
    uint64_t at = pages(sizeof *c);

    if (vcpus < 1 || vcpus > SMP_MAX_VCPUS || ram_size < PAGE || ram_size > MAX_RAM || ram_size % PAGE ||
        cpu_state_size > MAX_CPU_STATE)
        return 0;
    c->vcpu_offset = at;
    c->vcpu_stride = pages(sizeof(struct smp_vcpu));
    at += vcpus * c->vcpu_stride;
    c->cpu_offset = at;
    c->cpu_stride = pages(cpu_state_size);
    at += vcpus * c->cpu_stride;
    c->port_offset = at;
    at += PORTS;
    c->shadow_offset = at;
    at += PORTS;
    c->posted_offset = at;
    at += pages(SMP_POSTED * sizeof(struct smp_posted));
    c->switcher_offset = at;
    at += (SMP_SWITCHER_TEXT_PAGES + SMP_SWITCHER_VCPU_PAGES * vcpus) * PAGE;
    c->page_offset = at;
    at += pages(ram_size / PAGE * sizeof(uint64_t));
    c->granule_offset = at;
    at += pages(ram_size / PAGE * sizeof(uint64_t));
    c->size = at;
    return at;
}

uint64_t smp_control_size(uint32_t vcpus, uint64_t ram_size, uint64_t cpu_state_size)
{
    struct smp_control scratch;

    return lay_out(&scratch, vcpus, ram_size, cpu_state_size);
}

static int init_mutex(struct smp_control *c)
{
    pthread_mutexattr_t attributes;
    int error;

    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    /* Taking it twice is a bug of ours: an error instead of a hang. */
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    error = pthread_mutex_init((pthread_mutex_t *)c->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return -error;
}

/* Everything is cleared, so this is also how a restarted machine begins.  0 or negative errno. */
int smp_control_init(struct smp_control *c, uint64_t size, uint32_t vcpus, uint64_t ram_size,
                     uint64_t cpu_state_size, uint64_t tsc_khz)
{
    uint64_t needed = smp_control_size(vcpus, ram_size, cpu_state_size);
    uint32_t i;
    int error;

    if (!needed || size < needed || !tsc_khz)
        return -EINVAL;
    memset(c, 0, needed);
    lay_out(c, vcpus, ram_size, cpu_state_size);
    c->abi = SMP_ABI;
    c->ram_size = ram_size;
    c->vcpus = vcpus;
    c->host_pid = (uint32_t)getpid();
    c->tsc_khz = tsc_khz;
    c->tsc_start = smp_host_tsc();
    c->host_fd = -1;
    c->spin_ns = DEFAULT_SPIN_NS;
    c->dead_vcpu = SMP_MAX_VCPUS;
    error = init_mutex(c);
    if (error)
        return error;
    for (i = 0; i < vcpus; i++) {
        struct smp_vcpu *v = smp_vcpu(c, i);

        v->index = i;
        v->state = SMP_PAUSED;
        v->pause = 1;
        smp_lapic_reset(c, i, 1);
    }
    store(&c->magic, SMP_MAGIC);
    return 0;
}

struct smp_vcpu *smp_vcpu(struct smp_control *c, uint32_t index)
{
    return (struct smp_vcpu *)((char *)c + c->vcpu_offset + index * c->vcpu_stride);
}

/* ---- time -------------------------------------------------------------------- */

uint64_t smp_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The fence keeps RDTSC from running ahead of earlier loads: two vCPUs that pass a
 * value from one to the other must never see time go backwards. */
uint64_t smp_host_tsc(void)
{
    uint32_t low, high;

    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

uint64_t smp_guest_tsc(struct smp_control *c)
{
    return smp_host_tsc() - c->tsc_start;
}

uint32_t smp_inside_guest(void)
{
    uint32_t eax, ebx, ecx, edx;

    __cpuid(1, eax, ebx, ecx, edx);
    if (!(ecx >> 31 & 1)) /* no hypervisor: the leaf below means nothing */
        return 0;
    __cpuid(0x40000000, eax, ebx, ecx, edx);
    return ebx == 0x67706d73 && ecx == 0x74736575 && edx == 0x67706d73;
}

/* ---- life and death ---------------------------------------------------------- */

static void wake_everybody(struct smp_control *c)
{
    uint32_t i;

    for (i = 0; i < c->vcpus; i++) {
        struct smp_vcpu *v = smp_vcpu(c, i);

        smp_kick(c, i);
        futex_wake(&v->wake);
        futex_wake(&v->state);
        futex_wake(&v->pause);
        futex_wake(&v->in_guest);
        futex_wake(&v->request.mail);
    }
    futex_wake(&c->exclusive);
    futex_wake(&c->posted_head);
    smp_ring_host(c); /* whatever posted_signalled says: its setter may be the one who died */
}

/*
 * `dead` decides who writes the other fields; `dead_ready` says that they are
 * complete.  If the decider is killed in between, dead_ready stays 0: readers
 * take the reason alone then.
 */
int smp_kill_guest(struct smp_control *c, uint32_t reason, uint32_t vcpu, uint64_t code, const char *text)
{
    uint32_t alive = SMP_ALIVE;

    if (reason == SMP_ALIVE ||
        !__atomic_compare_exchange_n(&c->dead, &alive, reason, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return 0;
    c->dead_vcpu = vcpu;
    c->dead_code = code;
    strncpy(c->dead_text, text ? text : "", SMP_TEXT - 1);
    store(&c->dead_ready, 1);
    wake_everybody(c);
    return 1;
}

/*
 * The kick.  The sender has made something pending (events, irr, pause, dead,
 * a post in the ring) before it calls this.
 *
 * Against a running vCPU: pending -> kick word = -1, against the engine's
 * kick word = 0 -> full fence -> read pending.  If its 0 overwrites our -1, its
 * read comes after our pending write; if our -1 comes last, the next block
 * start sees it.
 *
 * Against a sleeping vCPU (smp_sleep): pending -> fence -> wake += 1 -> read
 * sleeping, against: read wake -> sleeping = 1 -> fence -> read pending ->
 * futex_wait(wake, value read).  If the sleeper does not see what is pending,
 * then its fence came before ours, so we see sleeping = 1 and wake it; should
 * our futex_wake come before its futex_wait, then `wake` has changed and the
 * kernel sends it back at once.
 *
 * Called from the timer's signal handler too: atomics and one system call.
 */
void smp_kick(struct smp_control *c, uint32_t vcpu)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint32_t offset = v->kick_offset;

    fence();
    if (offset) {
        char *cpu = (char *)c + c->cpu_offset + vcpu * c->cpu_stride;

        __atomic_store_n((int16_t *)(cpu + offset), (int16_t)-1, __ATOMIC_SEQ_CST);
    }
    __atomic_fetch_add(&v->wake, 1, __ATOMIC_SEQ_CST);
    if (load(&v->sleeping))
        futex_wake(&v->wake);
}

void smp_event(struct smp_control *c, uint32_t vcpu, uint32_t event)
{
    __atomic_fetch_or(&smp_vcpu(c, vcpu)->events, event, __ATOMIC_SEQ_CST);
    smp_kick(c, vcpu);
}

/* ---- sleep, pause, state ----------------------------------------------------- */

static int something_pending(struct smp_control *c, uint32_t vcpu)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint32_t waits_for_sipi = load(&v->lapic.wait_sipi);
    /* A vCPU that waits for SIPI keeps an NMI for later. */
    uint32_t events = load(&v->events) & ~(waits_for_sipi ? (uint32_t)SMP_EVENT_NMI : 0);

    if (is_dead(c) || load(&v->pause) || events)
        return 1;
    return !waits_for_sipi && !v->masked && smp_lapic_pending(c, vcpu) >= 0;
}

int smp_sleep(struct smp_control *c, uint32_t vcpu, int64_t timeout_ns)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint64_t begun = smp_now_ns();
    int pending, interrupted = 0;

    for (;;) {
        uint32_t wake = load(&v->wake);
        int64_t slice;

        store(&v->sleeping, 1);
        fence(); /* pairs with smp_kick */
        pending = something_pending(c, vcpu);
        slice = next_slice(begun, timeout_ns);
        if (pending || interrupted || !slice)
            break;
        interrupted = futex_wait(&v->wake, wake, slice) == EINTR;
    }
    store(&v->sleeping, 0);
    return pending || interrupted;
}

/* Almost nobody waits for a state, so the wake is spared: state -> fence -> read
 * waiters, against: waiters += 1 -> read state (smp_wait_state). */
void smp_set_state(struct smp_control *c, uint32_t vcpu, uint32_t state)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);

    store(&v->state, state);
    fence();
    if (load(&v->state_waiters))
        futex_wake(&v->state);
}

int smp_wait_state(struct smp_control *c, uint32_t vcpu, uint32_t state, int64_t timeout_ns)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint64_t begun = smp_now_ns();
    int differs;

    __atomic_fetch_add(&v->state_waiters, 1, __ATOMIC_SEQ_CST);
    while (!(differs = load(&v->state) != state)) {
        int64_t slice = next_slice(begun, timeout_ns);

        if (!slice || (timeout_ns < 0 && is_dead(c)))
            break;
        futex_wait(&v->state, state, slice);
    }
    __atomic_fetch_sub(&v->state_waiters, 1, __ATOMIC_SEQ_CST);
    return differs;
}

void smp_pause(struct smp_control *c, uint32_t vcpu, uint32_t on)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);

    store(&v->pause, on != 0);
    if (on)
        smp_event(c, vcpu, SMP_EVENT_STOP);
    else
        futex_wake(&v->pause);
}

void smp_pause_wait(struct smp_control *c, uint32_t vcpu)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);

    smp_leave_guest(c, vcpu);
    smp_set_state(c, vcpu, SMP_PAUSED);
    while (load(&v->pause) && !is_dead(c))
        futex_wait(&v->pause, 1, SLICE_NS);
    if (!is_dead(c))
        smp_set_state(c, vcpu, SMP_RUNNING);
}

/* ---- in the Guest, or out of it ---------------------------------------------- */

/*
 * in_guest against exclusive: Dekker.  We write in_guest = 1, fence, read
 * exclusive; a stopper (smp_exclusive_begin) writes exclusive, fence, reads
 * in_guest.  Either we see that it stops the world and go back out, or it sees
 * us inside, kicks us and waits.
 *
 * The same store and fence order us against senders of code posts: after the
 * fence we read our ring, and who finds in_guest = 0 has posted before it
 * looked (coherence.c).
 */
int smp_enter_guest(struct smp_control *c, uint32_t vcpu)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);

    while (!is_dead(c)) {
        uint32_t stopper;

        store(&v->in_guest, 1);
        fence();
        stopper = load(&c->exclusive);
        if (!stopper || stopper == vcpu + 1)
            return 0;
        smp_leave_guest(c, vcpu);
        wait_word(c, &c->exclusive, stopper);
    }
    smp_leave_guest(c, vcpu);
    return -1;
}

/* If the stopper's write of exclusive comes after our fence, it will read in_guest = 0
 * and not sleep; if before, we see it and wake it. */
void smp_leave_guest(struct smp_control *c, uint32_t vcpu)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);

    store(&v->in_guest, 0);
    fence();
    if (load(&c->exclusive))
        futex_wake(&v->in_guest);
}

int smp_exclusive_begin(struct smp_control *c, uint32_t vcpu)
{
    uint32_t nobody = 0, i;

    while (!__atomic_compare_exchange_n(&c->exclusive, &nobody, vcpu + 1, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
        /* Somebody else was first and waits for us. */
        smp_leave_guest(c, vcpu);
        if (smp_enter_guest(c, vcpu))
            return -1;
        nobody = 0;
    }
    /* Outside while we wait: one of them may be waiting for us to serve its post (coherence.c). */
    smp_leave_guest(c, vcpu);
    for (i = 0; i < c->vcpus; i++) {
        struct smp_vcpu *v = smp_vcpu(c, i);

        if (i == vcpu)
            continue;
        if (load(&v->in_guest))
            smp_kick(c, i); /* out of the blocks, to where it reads exclusive */
        wait_word(c, &v->in_guest, 1);
        if (is_dead(c)) {
            smp_exclusive_end(c, vcpu);
            return -1;
        }
    }
    smp_vcpu(c, vcpu)->counters.exclusive++;
    store(&smp_vcpu(c, vcpu)->in_guest, 1);
    fence(); /* as in smp_enter_guest; the caller reads its ring next */
    return 0;
}

void smp_exclusive_end(struct smp_control *c, uint32_t vcpu)
{
    uint32_t ours = vcpu + 1;

    if (__atomic_compare_exchange_n(&c->exclusive, &ours, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        futex_wake(&c->exclusive);
}
