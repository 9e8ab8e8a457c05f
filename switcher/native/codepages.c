/* SPDX-License-Identifier: GPL-2.0-only */
/* The engine's half of code coherence: rules W1, W2, T1, T2 of coherence.c, served posts. */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/ram_addr.h"
#include "uc_priv.h"
#include <sched.h>
#include "coherence.h"
#include "engine.h"

#define OUTSIDE UINT64_MAX

static uint64_t offset_of(struct smp_engine *s, const void *host)
{
    uint64_t offset = (uint64_t)((const uint8_t *)host - s->ram);

    return offset < s->ram_size ? offset : OUTSIDE;
}

static uint64_t load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static bool swap(uint64_t *word, uint64_t *old, uint64_t new_)
{
    return __atomic_compare_exchange_n(word, old, new_, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* One turn of a wait that ends when another vCPU moves: spin a little, then give the core away. */
static void relax(uint32_t *turns)
{
    if (++*turns % 64) {
        __builtin_ia32_pause();
    } else {
        sched_yield();
    }
}

/* ---- writing ------------------------------------------------------------- */

bool smp_write_is_fast(struct uc_struct *uc, const void *host)
{
    struct smp_engine *s = uc->smp;
    uint64_t offset = offset_of(s, host);

    if (offset == OUTSIDE) {
        /* The Switcher's registers page: nobody executes it. */
        return s->regs && ((uintptr_t)host ^ (uintptr_t)s->regs) < 4096;
    }
    /* Only we set and clear our bit; translators wait until we have cleared it. */
    return load(&s->pages[offset >> 12]) & s->fast_bit;
}

bool smp_own_code(struct uc_struct *uc, const void *host)
{
    struct smp_engine *s = uc->smp;
    uint64_t offset = offset_of(s, host);

    return offset != OUTSIDE && (load(&s->pages[offset >> 12]) & s->code_bit);
}

/* A store to a NOTDIRTY page is about to happen: become a fast writer (true, W1), or do W2's
 * first half (false); the caller stores and calls smp_write_end(). */
bool smp_write_begin(struct uc_struct *uc, const void *host, unsigned size)
{
    struct smp_engine *s = uc->smp;
    uint64_t offset = offset_of(s, host), word;

    if (offset == OUTSIDE) {
        return false;
    }
    word = load(&s->pages[offset >> 12]);
    while (!(word & PAGE_CODE_MASK)) {
        if ((word & s->fast_bit) || swap(&s->pages[offset >> 12], &word, word | s->fast_bit)) {
            return true;
        }
    }
    smp_page_write_lock(s->control, s->index, offset, size);
    s->locked_page = offset >> 12;
    s->write_locked = 1;
    return false;
}

void smp_write_end_locked(struct uc_struct *uc)
{
    struct smp_engine *s = uc->smp;

    s->write_locked = 0;
    smp_page_write_unlock(s->control, s->locked_page);
}

/* Our TLB entries that write `page` go back to asking; then, and only then, our fast bit. */
static void drop_fast(struct smp_engine *s, uint64_t page)
{
    uint64_t *word = &s->pages[page];

    if (load(word) & s->fast_bit) {
        tlb_reset_dirty(s->uc->cpu, (uintptr_t)s->ram + (page << 12), TARGET_PAGE_SIZE);
        /* The locked instruction drains our stores: pairs with the wait in ask_writers(). */
        __atomic_fetch_and(word, ~s->fast_bit, __ATOMIC_SEQ_CST);
    }
}

/* The same for every page at once. */
static void drop_all_fast(struct smp_engine *s)
{
    tlb_reset_dirty(s->uc->cpu, (uintptr_t)s->ram, s->ram_size);
    for (uint64_t page = 0; page < s->ram_size >> 12; page++) {
        if (load(&s->pages[page]) & s->fast_bit) {
            __atomic_fetch_and(&s->pages[page], ~s->fast_bit, __ATOMIC_SEQ_CST);
        }
    }
}

/* ---- translating --------------------------------------------------------- */

/* Without serving posts: a slow writer waits for nobody (coherence.c, "Why nobody waits for ever"). */
static void wait_writers(struct smp_engine *s, uint64_t *word)
{
    uint32_t turns = 0;

    while (PAGE_WRITERS(load(word)) && !smp_dead(s)) {
        relax(&turns);
    }
}

/* T2: every vCPU with fast entries drops them, or is outside the Guest. */
static void ask_writers(struct smp_engine *s, uint64_t page)
{
    uint64_t *word = &s->pages[page];
    uint32_t writers = (load(word) & PAGE_FAST_MASK & ~s->fast_bit) >> 16;
    uint32_t turns = 0;

    if (!writers) {
        return;
    }
    /* The post comes before our look at in_guest; the other's in_guest = 1 comes before its look
     * at the ring (smp_enter_guest, then smp_drain): one of the two sees the other. */
    smp_post_code(s->control, writers, smp_make_post(POST_WRITE_PROTECT, page << 6, 64));
    for (uint32_t i = 0; i < s->control->vcpus; i++) {
        if (!(writers >> i & 1)) {
            continue;
        }
        while ((load(word) & PAGE_FAST(i)) && !smp_dead(s) &&
               __atomic_load_n(&smp_vcpu(s->control, i)->in_guest, __ATOMIC_SEQ_CST)) {
            smp_drain(s, true); /* it may be waiting for us just now */
            relax(&turns);
        }
    }
}

static void declare_granule(struct smp_engine *s, uint64_t granule)
{
    uint64_t page = granule >> 6, bit = 1ull << (granule & 63);
    uint64_t *word = &s->pages[page], old = load(word);

    while (!(old & s->code_bit)) {
        if (PAGE_WRITERS(old)) {
            wait_writers(s, word);
            old = load(word);
            if (smp_dead(s)) {
                break;
            }
        } else if (swap(word, &old, old | s->code_bit)) {
            break;
        }
    }
    if (!(load(&s->granules[page]) & bit)) {
        __atomic_fetch_or(&s->granules[page], bit, __ATOMIC_SEQ_CST);
    }
    wait_writers(s, word);
    drop_fast(s, page);
#ifndef SMP_WITHOUT_WRITE_PROTECT /* left out only to see that tests notice (tests/slow) */
    ask_writers(s, page);
#endif
    s->fetch_granule = granule + 1;
}

/* Bytes at `host` are about to be read for translation. */
void smp_code_fetch(struct uc_struct *uc, const void *host, unsigned size)
{
    struct smp_engine *s = uc->smp;
    uint64_t offset = offset_of(s, host);

    if (offset == OUTSIDE) {
        return;
    }
    for (uint64_t g = offset >> 6; g <= (offset + size - 1) >> 6; g++) {
        if (s->fetch_granule != g + 1) {
            declare_granule(s, g);
        }
    }
}

void smp_translated(struct uc_struct *uc)
{
    uc->smp->vcpu->counters.tb_translated++;
}

/* Our last translation from the page at `ram_addr` is gone: give the code bit back. */
void smp_code_gone(struct uc_struct *uc, uint64_t ram_addr)
{
    struct smp_engine *s = uc->smp;
    uint64_t page = ram_addr >> 12, old;

    s->fetch_granule = 0;
    if (page >= s->ram_size >> 12) {
        return;
    }
    old = load(&s->pages[page]);
    while (old & s->code_bit) {
        if ((old & PAGE_CODE_MASK) == s->code_bit && !PAGE_WRITERS(old)) {
            /* The last one clears the granules, translators kept away by writers (T1). */
            if (swap(&s->pages[page], &old, (old & ~s->code_bit) + PAGE_WRITER)) {
                __atomic_store_n(&s->granules[page], 0, __ATOMIC_SEQ_CST);
                smp_page_write_unlock(s->control, page);
                return;
            }
        } else if (swap(&s->pages[page], &old, old & ~s->code_bit)) {
            return;
        }
    }
}

/* ---- serving posts ------------------------------------------------------- */

static void invalidate(struct smp_engine *s, uint64_t post)
{
    uint64_t start = POST_GRANULE(post) << 6;

    s->vcpu->counters.tb_invalidated++;
    /* The store it announces may not have happened yet: the next translation must wait for it. */
    s->fetch_granule = 0;
    tb_invalidate_phys_range(s->uc, start, start + POST_COUNT(post) * 64ull);
}

static void forget_translations(struct smp_engine *s)
{
    s->vcpu->counters.ring_overflows++;
    tb_flush(s->uc->cpu);
    for (uint64_t page = 0; page < s->ram_size >> 12; page++) {
        smp_code_gone(s->uc, page << 12);
    }
}

static void serve(struct smp_engine *s, uint64_t post, bool translating)
{
    if (POST_KIND(post) == POST_WRITE_PROTECT) {
        s->vcpu->counters.write_protects++;
        drop_fast(s, POST_GRANULE(post) >> 6);
    } else if (!translating) {
        invalidate(s, post);
    } else if (s->deferred_count < ARRAY_SIZE(s->deferred)) {
        /* The block in the making may hold these bytes and is in no list yet.  Our kick word
         * is still set: smp_poll() comes before the block can run. */
        s->deferred[s->deferred_count++] = post;
    } else {
        __atomic_store_n(&s->vcpu->flush_all, 1, __ATOMIC_SEQ_CST);
    }
}

/* Serve the ring.  `translating`: in the middle of a block, only mark TLB entries. */
void smp_drain(struct smp_engine *s, bool translating)
{
    struct smp_vcpu *v = s->vcpu;
    uint32_t turns = 0;

    if (!translating) {
        for (uint32_t i = 0; i < s->deferred_count; i++) {
            invalidate(s, s->deferred[i]);
        }
        s->deferred_count = 0;
    }
    while (v->ring_head != __atomic_load_n(&v->ring_tail, __ATOMIC_SEQ_CST)) {
        uint64_t *slot = &v->ring[v->ring_head % SMP_RING];
        uint64_t post = __atomic_load_n(slot, __ATOMIC_SEQ_CST);

        if (!post) {
            /* Reserved and not yet filled.  Complete posts may stand behind it whose producers have
             * kicked already and will not again: wait.  A producer waits for nothing in between,
             * and if it was killed there the Guest is dead. */
            if (smp_dead(s)) {
                break;
            }
            relax(&turns);
            continue;
        }
        __atomic_store_n(slot, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&v->ring_head, v->ring_head + 1, __ATOMIC_RELEASE);
        serve(s, post, translating);
    }
    if (__atomic_load_n(&v->flush_all, __ATOMIC_SEQ_CST)) {
        if (!translating) {
            __atomic_store_n(&v->flush_all, 0, __ATOMIC_SEQ_CST); /* before: posts lost after count anew */
            forget_translations(s);
        }
        drop_all_fast(s);
    }
}

/* We were outside the Guest in the middle of a block: others went on without waiting for us, so
 * fast entries they asked for must be gone before the block's next store. */
void smp_after_wait(struct smp_engine *s)
{
    if (s->vcpu->ring_head != __atomic_load_n(&s->vcpu->ring_tail, __ATOMIC_SEQ_CST) ||
        __atomic_load_n(&s->vcpu->flush_all, __ATOMIC_SEQ_CST)) {
        smp_drain(s, true);
    }
}
