/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic words in the control block, and waiting on them.
 *
 * Linux on x86-64 only.  Futexes are shared between processes, so never
 * FUTEX_PRIVATE_FLAG.
 *
 * Rules that hold for every wait in the Switcher:
 *  - It ends when the Guest is dead.  smp_kill_guest() wakes every futex word,
 *    but a word that it does not change can be waited on just after that wake;
 *    so nobody sleeps longer than a slice without looking at `dead` again.  The
 *    slice also covers a peer that is killed (SIGKILL) between changing a word
 *    and waking its waiters.
 *  - A peer that died cannot be waited for in vain: a dead worker makes the
 *    Host kill the Guest, and workers die with their Host.
 *
 * The pattern behind every lock-free pair is Dekker's: each side writes its own
 * word, issues a full fence, then reads the other's.  At least one of the two
 * sees the other.  Atomic read-modify-writes are full fences on x86; where a
 * plain store is followed by a load the fence is spelt out.
 */
#ifndef SMPGUEST_WORDS_H
#define SMPGUEST_WORDS_H
#include "control.h"
#include <errno.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SLICE_NS /* the tests build one with a long slice, so that it cannot hide a lost wake-up */
#define SLICE_NS 50000000ll
#endif
/* How often a waiter looks before it sleeps: about 2 us, less than a futex round trip. */
#define SPINS 60

static inline uint32_t load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static inline void store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static inline void fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline int is_dead(struct smp_control *c)
{
    return load(&c->dead) != SMP_ALIVE;
}

/* What a read of nobody gives. */
static inline uint64_t ones(uint32_t size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (size * 8)) - 1;
}

/* Sleep while *word == value; 0 woken or changed, else ETIMEDOUT or EINTR. */
static inline int futex_wait(uint32_t *word, uint32_t value, int64_t ns)
{
    struct timespec timeout = { ns / 1000000000, ns % 1000000000 };
    int saved = errno, result = 0;

    if (syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0) && errno != EAGAIN)
        result = errno;
    errno = saved;
    return result;
}

/* Safe in a signal handler. */
static inline void futex_wake(uint32_t *word)
{
    int saved = errno;

    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    errno = saved;
}

/* Sleep while *word == value and the Guest lives; look a little before. */
static inline void wait_word(struct smp_control *c, uint32_t *word, uint32_t value)
{
    int spins;

    for (spins = 0; spins < SPINS && load(word) == value; spins++)
        __builtin_ia32_pause();
    while (load(word) == value && !is_dead(c))
        futex_wait(word, value, SLICE_NS);
}

/* What is left of a time-out (negative: for ever), at most a slice; 0 when it is over. */
static inline int64_t next_slice(uint64_t begun, int64_t timeout_ns)
{
    uint64_t gone;

    if (timeout_ns < 0)
        return SLICE_NS;
    gone = smp_now_ns() - begun;
    if (gone >= (uint64_t)timeout_ns)
        return 0;
    return timeout_ns - (int64_t)gone < SLICE_NS ? timeout_ns - (int64_t)gone : SLICE_NS;
}

/* mailbox.c: write to the Host's eventfd, unconditionally. */
void smp_ring_host(struct smp_control *c);
#endif
