/* SPDX-License-Identifier: GPL-2.0-only */
/* The Big Lock: who may take it and for what is in the Host's biglock module. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "words.h"
#include <pthread.h>

static void note_lock(struct smp_control *c, uint32_t site, uint64_t asked, int contended, int recovered)
{
    struct smp_lock_stats *stats;
    uint64_t now = smp_now_ns();

    if (site >= SMP_SITES)
        site = SMP_SITE_OTHER;
    stats = &c->locks[site];
    stats->count++;
    stats->contended += contended;
    stats->recovered += recovered;
    stats->wait_ns += now - asked;
    c->mutex_site = site;
    c->mutex_owner = (uint32_t)getpid();
    c->mutex_since = now;
}

/*
 * A robust mutex: when its holder dies, at whatever instruction, the kernel
 * hands it on and says so.  What it protects is kept such that every single
 * store leaves it usable (bindings: `used` is written last), so there is
 * nothing to repair here; the return value 1 tells the caller, which may know more.
 */
int smp_lock(struct smp_control *c, uint32_t site)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)c->mutex;
    uint64_t asked = smp_now_ns();
    int error = pthread_mutex_trylock(mutex);
    int contended = error == EBUSY, recovered;

    if (contended)
        error = pthread_mutex_lock(mutex);
    recovered = error == EOWNERDEAD;
    if (recovered)
        error = pthread_mutex_consistent(mutex);
    if (error)
        return -error;
    note_lock(c, site, asked, contended, recovered);
    return recovered;
}

int smp_unlock(struct smp_control *c)
{
    struct smp_lock_stats *stats = &c->locks[c->mutex_site < SMP_SITES ? c->mutex_site : SMP_SITE_OTHER];
    uint64_t held = smp_now_ns() - c->mutex_since;

    if (c->mutex_owner != (uint32_t)getpid())
        return -EPERM;
    stats->hold_ns += held;
    if (held > stats->max_hold_ns)
        stats->max_hold_ns = held;
    c->mutex_owner = 0;
    return -pthread_mutex_unlock((pthread_mutex_t *)c->mutex);
}
