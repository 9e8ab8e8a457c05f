/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The Switcher's window: a few pages at one high virtual address in every
 * address space of the Guest, whatever CR3 says (lguest's map_switcher).
 *
 *   page 0        text               read, execute
 *   page 1 + 2 i  vCPU i: registers  read, write     seen by vCPU i only
 *   page 2 + 2 i  vCPU i: state      read            seen by vCPU i only
 *   behind them   guard              never there
 *
 * The TLB is filled from here before the Guest's tables are asked, so nothing
 * the Guest writes there can cover or move the window.  Only ring 0 gets in,
 * and the CPU itself when it reads a descriptor or pushes a frame; the Guest's
 * kernel is in ring 1.  Paging knows supervisor and user only, so with a window
 * rings 1 and 2 have a TLB of their own (smp_inner_rings, patch 25): what is
 * entered in ring 0's does not serve them.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "uc_priv.h"
#include "control.h"
#include "engine.h"

/* Read by cpu_mmu_index(): one attached engine a process. */
bool smp_inner_rings;

static uint64_t pages_of(struct smp_control *c)
{
    return SMP_SWITCHER_TEXT_PAGES + (uint64_t)SMP_SWITCHER_VCPU_PAGES * c->vcpus;
}

int smp_window_map(struct smp_engine *s)
{
    struct smp_control *c = s->control;

    smp_inner_rings = true;
    return uc_mem_map_ptr(s->uc, SMP_SWITCHER_PHYSICAL, pages_of(c) << 12, UC_PROT_ALL,
                          (char *)c + c->switcher_offset)
               ? -1
               : 0;
}

static int protection(struct smp_engine *s, uint64_t page)
{
    uint64_t own = SMP_SWITCHER_TEXT_PAGES + (uint64_t)SMP_SWITCHER_VCPU_PAGES * s->index;

    if (page < SMP_SWITCHER_TEXT_PAGES) {
        return PAGE_READ | PAGE_EXEC;
    }
    return page == own ? PAGE_READ | PAGE_WRITE : page == own + 1 ? PAGE_READ : 0;
}

/* `access`: 0 load, 1 store, 2 fetch, as MMUAccessType. */
enum smp_window smp_window_fill(CPUState *cpu, uint64_t address, int access, int mmu_idx)
{
    struct smp_engine *s = cpu->uc->smp;
    struct smp_control *c = s->control;
    CPUX86State *env = cpu->env_ptr;
    uint64_t page = (address - c->switcher_address) >> 12;
    int allowed;

    if (!c->switcher_address) {
        return SMP_NOT_IN_WINDOW;
    }
    if (c->machine == SMP_MACHINE_LGUEST && address < c->switcher_address) {
        return smp_lguest_fill(s, (uint32_t)address, access, mmu_idx);
    }
    if (c->machine != SMP_MACHINE_LGUEST && page > pages_of(c)) {
        return SMP_NOT_IN_WINDOW;
    }
    allowed = page < pages_of(c) && mmu_idx == MMU_KNOSMAP_IDX ? protection(s, page) : 0;
    if (!(allowed & 1 << access)) {
        env->error_code = (allowed ? PG_ERROR_P_MASK : 0) | (access == 1) << PG_ERROR_W_BIT |
                          (mmu_idx == MMU_USER_IDX ? PG_ERROR_U_MASK : 0);
        env->cr[2] = address;
        cpu->exception_index = EXCP0E_PAGE;
        return SMP_WINDOW_FAULT;
    }
    tlb_set_page_with_attrs(cpu, address & TARGET_PAGE_MASK, SMP_SWITCHER_PHYSICAL + (page << 12),
                            cpu_get_mem_attrs(env), allowed, mmu_idx, TARGET_PAGE_SIZE);
    return SMP_WINDOW_MAPPED;
}
