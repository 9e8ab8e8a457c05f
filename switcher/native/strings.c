/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * REP MOVS and REP STOS a page at a time.
 *
 * Called at the head of the instruction with both linear addresses computed.
 * Where both pages are plain RAM that the TLB knows, the host's own string
 * instruction moves all elements up to the next page boundary: the same
 * element size, the same order, each location written once, so overlap and
 * what other vCPUs may see are as on hardware.  Then the registers say how far
 * it got, and the ordinary translation does the rest one by one: elements that
 * cross pages, faults, devices, code pages, watchpoints, DF = 1.  No more than
 * a page at a time, so a kick waits microseconds.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/cpu_ldst.h"
#include "exec/helper-proto.h"
#include "uc_priv.h"
#include "engine.h"

/* Host address of `address` if a fast TLB entry allows the access, else NULL. */
static void *fast_host(CPUX86State *env, target_ulong address, bool write)
{
    CPUTLBEntry *entry = tlb_entry(env, cpu_mmu_index(env, false), address);
    target_ulong tag = write ? tlb_addr_write(entry) : entry->addr_read;

    /* Any flag bit, or another page: not equal. */
    return tag == (address & TARGET_PAGE_MASK) ? (void *)((uintptr_t)address + entry->addend) : NULL;
}

static uint64_t elements_in_page(target_ulong address, unsigned size)
{
    return (TARGET_PAGE_SIZE - (address & ~TARGET_PAGE_MASK)) / size;
}

static target_ulong get(CPUX86State *env, int reg, bool wide)
{
    return wide ? env->regs[reg] : (uint32_t)env->regs[reg];
}

/* A 32-bit offset must not wrap in the middle. */
static uint64_t elements_before_wrap(CPUX86State *env, int reg, bool wide, unsigned size)
{
    return wide ? UINT64_MAX : ((1ull << 32) - (uint32_t)env->regs[reg]) / size;
}

static void add(CPUX86State *env, int reg, uint64_t delta, bool wide)
{
    env->regs[reg] = wide ? env->regs[reg] + delta : (uint32_t)(env->regs[reg] + delta);
}

/* `how`: log2 of the element size, plus 4 when the address size is 64 bits. */
void helper_smp_rep_movs(CPUX86State *env, target_ulong to, target_ulong from, uint32_t how)
{
    unsigned size = 1u << (how & 3);
    bool wide = how & 4;
    uint64_t n = MIN(get(env, R_ECX, wide), MIN(elements_in_page(to, size), elements_in_page(from, size)));
    uint64_t left = n;
    void *source, *target;

    n = left = MIN(n, MIN(elements_before_wrap(env, R_ESI, wide, size),
                          elements_before_wrap(env, R_EDI, wide, size)));
    if (n < 2 || env->df != 1 || !(target = fast_host(env, to, true)) ||
        !(source = fast_host(env, from, false))) {
        return;
    }
    switch (how & 3) {
    case 0: asm volatile("rep movsb" : "+c"(left), "+D"(target), "+S"(source) : : "memory"); break;
    case 1: asm volatile("rep movsw" : "+c"(left), "+D"(target), "+S"(source) : : "memory"); break;
    case 2: asm volatile("rep movsl" : "+c"(left), "+D"(target), "+S"(source) : : "memory"); break;
    case 3: asm volatile("rep movsq" : "+c"(left), "+D"(target), "+S"(source) : : "memory"); break;
    }
    add(env, R_ESI, n * size, wide);
    add(env, R_EDI, n * size, wide);
    add(env, R_ECX, -n, wide);
}

void helper_smp_rep_stos(CPUX86State *env, target_ulong to, uint32_t how)
{
    unsigned size = 1u << (how & 3);
    bool wide = how & 4;
    uint64_t n = MIN(get(env, R_ECX, wide), elements_in_page(to, size)), left = n;
    uint64_t value = env->regs[R_EAX];
    void *target;

    n = left = MIN(n, elements_before_wrap(env, R_EDI, wide, size));
    if (n < 2 || env->df != 1 || !(target = fast_host(env, to, true))) {
        return;
    }
    switch (how & 3) {
    case 0: asm volatile("rep stosb" : "+c"(left), "+D"(target) : "a"(value) : "memory"); break;
    case 1: asm volatile("rep stosw" : "+c"(left), "+D"(target) : "a"(value) : "memory"); break;
    case 2: asm volatile("rep stosl" : "+c"(left), "+D"(target) : "a"(value) : "memory"); break;
    case 3: asm volatile("rep stosq" : "+c"(left), "+D"(target) : "a"(value) : "memory"); break;
    }
    add(env, R_EDI, n * size, wide);
    add(env, R_ECX, -n, wide);
}
