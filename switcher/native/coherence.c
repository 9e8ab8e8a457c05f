/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Code coherence between engines: the protocol, and its half that needs no engine.
 *
 * Every engine translates guest code on its own and knows only its own writes.
 * For each page of guest RAM the control block holds a word
 *
 *     bits  0..15  code:    vCPU i has translated from this page
 *     bits 16..31  fast:    vCPU i may hold TLB entries that write it without asking
 *     bits 32..63  writers: slow writes (by vCPUs or the Host) in progress now
 *
 * and a bitmap of 64-byte granules from which anybody has translated, so that
 * data beside code does not cost a post per store.  Four rules:
 *
 * W1  A vCPU sets its fast bit by compare-and-swap, only while code is empty,
 *     before it installs a fast write entry (smp_write_begin).
 * W2  Otherwise each store is slow: writers += 1; read code and granules; post
 *     INVALIDATE to the vCPUs that translated there, kick them; store;
 *     writers -= 1 (smp_page_write_lock, ..._unlock).
 * T1  A vCPU that is about to read bytes for translation sets its code bit by
 *     compare-and-swap, only while writers is 0, and then the granule bits; then
 *     it waits until writers is 0 (smp_code_fetch).
 * T2  Then it asks every vCPU whose fast bit is set to drop its fast entries
 *     (WRITE_PROTECT) and waits until the bit is clear or that vCPU is outside
 *     the Guest: it will serve its posts before it touches guest memory again.
 *     Only now are the bytes read.
 *
 * Why no translation can be stale beyond what the architecture allows.  Take a
 * store S to bytes that vCPU E translates into block B, S not in E's program.
 *
 *  - S through a fast entry.  Its owner W set fast while code was empty.  If
 *    that came before E's code bit, T2 makes E wait for W to clear the bit: W
 *    does it with a locked instruction after its last fast store, so S is
 *    visible to E's reads, or S never was.  It cannot come after: W1.
 *  - S slow, and W's writers += 1 comes after E's code bit and granule bits in
 *    the order of locked operations: W sees both and posts INVALIDATE before S.
 *    E's kick word is set before S is visible, x86 keeps W's stores in order,
 *    so whoever learns of S in any way, E included, learns of it after the kick
 *    word is set; E looks at that word at the start of every block, serves the
 *    post and drops B before it can enter B again.  E may serve the post before
 *    S is done, and translate anew: but then it waits until writers is 0, which
 *    comes after S.  (A vCPU skips the wait of T1 only for a granule that it
 *    declared since it last served a post: fetch_granule.)
 *  - S slow, and W did not see E's granule bit.  Then W's writers += 1 comes
 *    before E's granule bit (Dekker: each side does its locked write, then
 *    reads the other's), and E's last wait of T1 does not end before W's
 *    writers -= 1, which comes after S: E reads what S wrote.
 *
 * Why nobody waits for ever.  A slow write waits for nothing between += and -=:
 * a vCPU's is one store, and the Host's is one memcpy (smp_dma_write).
 * A translator that waits in T2 serves WRITE_PROTECT posts meanwhile (they only
 * mark TLB entries), so two that wait for each other both go on.  A parked, halted
 * or Host-bound vCPU is outside the Guest (in_guest == 0).  All waits end when
 * the Guest is dead, whatever a killed worker left behind.
 *
 * Bits are cleared by their owner only: code when its last translation from the
 * page is gone, and when that empties the mask the granules are cleared too,
 * under writers += 1, with which rule T1 keeps new translators away.
 *
 * A receiver's ring has many producers: a slot is reserved by compare-and-swap
 * on the tail, then filled; the owner waits at an unfilled slot, because what
 * stands behind it was announced by kicks that it has consumed.  A full ring
 * sets flush_all: forget every translation and every fast entry.
 */
#include <sched.h>
#include <string.h>
#include "coherence.h"

void smp_kick_running(struct smp_control *c, uint32_t vcpu)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    uint32_t offset = __atomic_load_n(&v->kick_offset, __ATOMIC_ACQUIRE);

    if (offset) {
        char *state = (char *)c + c->cpu_offset + vcpu * c->cpu_stride;
        __atomic_store_n((int16_t *)(state + offset), -1, __ATOMIC_SEQ_CST);
    }
}

static void push(struct smp_vcpu *v, uint64_t post)
{
    uint32_t tail = __atomic_load_n(&v->ring_tail, __ATOMIC_RELAXED);

    do {
        if (tail - __atomic_load_n(&v->ring_head, __ATOMIC_ACQUIRE) >= SMP_RING) {
            __atomic_store_n(&v->flush_all, 1, __ATOMIC_SEQ_CST);
            return;
        }
    } while (!__atomic_compare_exchange_n(&v->ring_tail, &tail, tail + 1, 0, __ATOMIC_SEQ_CST,
                                          __ATOMIC_RELAXED));
    __atomic_store_n(&v->ring[tail % SMP_RING], post, __ATOMIC_SEQ_CST);
}

void smp_post_code(struct smp_control *c, uint32_t mask, uint64_t post)
{
#ifdef SMP_WITHOUT_INVALIDATE /* left out only to see that tests notice (tests/slow) */
    if (POST_KIND(post) == POST_INVALIDATE) {
        return;
    }
#endif
    for (uint32_t i = 0; i < c->vcpus; i++) {
        if (mask >> i & 1) {
            push(smp_vcpu(c, i), post);
            smp_kick_running(c, i);
        }
    }
}

uint64_t smp_page_write_lock(struct smp_control *c, uint32_t except, uint64_t offset, uint64_t len)
{
    uint64_t page = offset >> 12;
    uint64_t word = __atomic_fetch_add(&smp_pages(c)[page], PAGE_WRITER, __ATOMIC_SEQ_CST);
    uint32_t readers = word & PAGE_CODE_MASK;

    if (except < SMP_MAX_VCPUS) {
        readers &= ~(1u << except);
    }
    if (readers) {
        uint64_t touched = smp_granule_bits(offset, len);

        if (__atomic_load_n(&smp_granules(c)[page], __ATOMIC_SEQ_CST) & touched) {
            uint64_t first = offset >> 6, last = (offset + len - 1) >> 6;

            smp_post_code(c, readers, smp_make_post(POST_INVALIDATE, first, (uint32_t)(last - first + 1)));
            if (except < SMP_MAX_VCPUS) {
                smp_vcpu(c, except)->counters.code_posts++;
            }
        }
    }
    return word;
}

void smp_page_write_unlock(struct smp_control *c, uint64_t page)
{
    __atomic_fetch_sub(&smp_pages(c)[page], PAGE_WRITER, __ATOMIC_SEQ_CST);
}

/* No overflow: `address + len` is never formed before both are known to be small. */
static int in_ram(struct smp_control *c, uint64_t address, uint64_t len)
{
    return address <= c->ram_size && len <= c->ram_size - address;
}

static int dma_begin(struct smp_control *c, uint64_t address, uint64_t len)
{
    if (!in_ram(c, address, len)) {
        return -1;
    }
    while (len) {
        uint64_t part = 4096 - (address & 4095);

        part = part < len ? part : len;
        smp_page_write_lock(c, SMP_MAX_VCPUS, address, part);
        address += part;
        len -= part;
    }
    return 0;
}

static void dma_end(struct smp_control *c, uint64_t address, uint64_t len)
{
    if (!len || !in_ram(c, address, len)) {
        return;
    }
    for (uint64_t page = address >> 12; page <= (address + len - 1) >> 12; page++) {
        smp_page_write_unlock(c, page);
    }
}

int smp_dma_write(struct smp_control *c, void *ram, uint64_t address, const void *data, uint64_t len)
{
    if (dma_begin(c, address, len) < 0) {
        return -1;
    }
    memcpy((char *)ram + address, data, len);
    dma_end(c, address, len);
    return 0;
}

void smp_lguest_store(struct smp_control *c, void *ram, uint64_t address, uint32_t value)
{
    smp_dma_write(c, ram, address, &value, sizeof(value));
}

void smp_lguest_or(void *ram, uint64_t address, uint32_t bits)
{
    __atomic_fetch_or((uint32_t *)((char *)ram + (address & ~3ull)), bits, __ATOMIC_SEQ_CST);
}
