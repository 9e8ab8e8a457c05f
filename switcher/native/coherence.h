/* SPDX-License-Identifier: GPL-2.0-only */
/* Page words and code posts, shared by the engine and the Host.  The protocol is in coherence.c. */
#ifndef SMPGUEST_COHERENCE_H
#define SMPGUEST_COHERENCE_H
#include "control.h"

#define PAGE_CODE(i) (1ull << (i))              /* vCPU i has translated from the page */
#define PAGE_FAST(i) (1ull << (16 + (i)))       /* vCPU i may have fast write entries for it */
#define PAGE_WRITER (1ull << 32)                /* one slow write in progress (a count) */
#define PAGE_CODE_MASK 0xffffull
#define PAGE_FAST_MASK 0xffff0000ull
#define PAGE_WRITERS(w) ((w) >> 32)

/* A post: kind in bits 60.., granules - 1 in bits 48..53, first granule (address / 64) below. */
#define POST_WRITE_PROTECT 1
#define POST_INVALIDATE 2
#define POST_KIND(p) ((uint32_t)((p) >> 60))
#define POST_GRANULE(p) ((p) & 0xffffffffffffull)
#define POST_COUNT(p) ((uint32_t)((p) >> 48 & 63) + 1)

static inline uint64_t *smp_pages(struct smp_control *c)
{
    return (uint64_t *)((char *)c + c->page_offset);
}

static inline uint64_t *smp_granules(struct smp_control *c)
{
    return (uint64_t *)((char *)c + c->granule_offset);
}

/* Bits of the granules that [offset, offset + len) touches; must lie within one page. */
static inline uint64_t smp_granule_bits(uint64_t offset, uint64_t len)
{
    uint32_t first = (offset & 4095) >> 6, last = ((offset & 4095) + len - 1) >> 6;

    return (~0ull >> (63 - last)) & (~0ull << first);
}

static inline uint64_t smp_make_post(uint32_t kind, uint64_t granule, uint32_t count)
{
    return (uint64_t)kind << 60 | (uint64_t)(count - 1) << 48 | granule;
}

/* Post to every vCPU in `mask`, then store its kick word.  Never waits. */
void smp_post_code(struct smp_control *c, uint32_t mask, uint64_t post);
/* Store the kick word only: for those that must look before they run on, not wake up. */
void smp_kick_running(struct smp_control *c, uint32_t vcpu);
/* Lock `page` against translators and tell those who translated from [offset, offset + len)
 * of guest RAM, except `except`; returns the page word before.  Store, then unlock. */
uint64_t smp_page_write_lock(struct smp_control *c, uint32_t except, uint64_t offset, uint64_t len);
void smp_page_write_unlock(struct smp_control *c, uint64_t page);
#endif
