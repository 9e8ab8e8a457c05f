/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The lguest machine's CPU, as far as it is the engine's: the Guest's own page
 * tables under lguest's rules, and the state in which the Switcher's text runs.
 *
 * lguest kept shadow tables because real hardware must not see the Guest's.
 * Here the engine's TLB is the shadow: lguest_fill() is lguest's demand_page().
 *  - Linear mode, before the first table: virtual is physical, writable, for
 *    the kernel only.
 *  - Directory entries may have the bits of an ordinary table and no others,
 *    entries must not have PSE, and both must stay below pfn_limit: else the
 *    Guest is killed.
 *  - ACCESSED and DIRTY are set in the Guest's own entry (not in the directory),
 *    by compare-and-swap: another vCPU may be clearing them.  A clean page is
 *    entered read-only, so that the first write comes back here.
 *  - Nothing from the Switcher's address up is the Guest's (window.c).
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "uc_priv.h"
#include "control.h"
#include "engine.h"

#define DIRECTORY_BITS (PG_PRESENT_MASK | PG_RW_MASK | PG_USER_MASK | PG_ACCESSED_MASK | PG_DIRTY_MASK)
#define CR0_LGUEST (CR0_PG_MASK | CR0_WP_MASK | CR0_NE_MASK | CR0_ET_MASK | CR0_MP_MASK | CR0_PE_MASK)
#define RING_0 0

/* ---- the Guest's page tables ----------------------------------------------------- */

static enum smp_window kill_guest(struct smp_engine *s, const char *text, uint32_t address)
{
    char words[SMP_TEXT];

    snprintf(words, sizeof(words), text, address);
    smp_kill_guest(s->control, SMP_DEAD_KILLED, s->index, 0, words);
    return SMP_WINDOW_DEAD;
}

/* lguest's lgread() with its lguest_address_ok(): outside of what the Guest has, it dies. */
static bool read_entry(struct smp_engine *s, uint32_t address, uint32_t *entry)
{
    if (((uint64_t)address + 4) >> 12 >= s->control->pfn_limit) {
        kill_guest(s, "bad read address %#x len 4", address);
        return false;
    }
    *entry = __atomic_load_n((uint32_t *)(s->ram + (address & ~3u)), __ATOMIC_RELAXED);
    return true;
}

static enum smp_window fault(CPUX86State *env, uint32_t address, uint32_t code)
{
    env->error_code = (int)code;
    env->cr[2] = address;
    env_cpu(env)->exception_index = EXCP0E_PAGE;
    return SMP_WINDOW_FAULT;
}

static enum smp_window map(struct smp_engine *s, uint32_t address, uint32_t page, int protection, int mmu_idx)
{
    CPUState *cpu = s->uc->cpu;

    tlb_set_page_with_attrs(cpu, address & ~0xfffu, (uint64_t)page << 12, cpu_get_mem_attrs(cpu->env_ptr),
                            protection, mmu_idx, TARGET_PAGE_SIZE);
    return SMP_WINDOW_MAPPED;
}

enum smp_window smp_lguest_fill(struct smp_engine *s, uint32_t address, int access, int mmu_idx)
{
    CPUX86State *env = s->uc->cpu->env_ptr;
    bool write = access == MMU_DATA_STORE, user = mmu_idx == MMU_USER_IDX;
    uint32_t limit = s->control->pfn_limit, directory, table, entry, at, bits;
    uint32_t code = (write ? PG_ERROR_W_MASK : 0) | (user ? PG_ERROR_U_MASK : 0);

    if (s->vcpu->linear) {
        if (user) {
            return fault(env, address, code | PG_ERROR_P_MASK);
        }
        if (address >> 12 >= limit) {
            return kill_guest(s, "bad page table entry", 0);
        }
        return map(s, address, address >> 12, PAGE_READ | PAGE_WRITE | PAGE_EXEC, mmu_idx);
    }
    directory = (uint32_t)env->cr[3] + (address >> 22) * 4;
    if (!read_entry(s, directory, &table)) {
        return SMP_WINDOW_DEAD;
    }
    if (!(table & PG_PRESENT_MASK)) {
        return fault(env, address, code);
    }
    if ((table & 0xfff & ~DIRECTORY_BITS) || table >> 12 >= limit) {
        return kill_guest(s, "bad page directory entry", 0);
    }
    at = (table & ~0xfffu) + (address >> 12 & 0x3ff) * 4;
    for (;;) {
        if (!read_entry(s, at, &entry)) {
            return SMP_WINDOW_DEAD;
        }
        if (!(entry & PG_PRESENT_MASK)) {
            return fault(env, address, code);
        }
        if ((write && !(table & entry & PG_RW_MASK)) || (user && !(table & entry & PG_USER_MASK))) {
            return fault(env, address, code | PG_ERROR_P_MASK);
        }
        if ((entry & PG_PSE_MASK) || entry >> 12 >= limit) {
            return kill_guest(s, "bad page table entry", 0);
        }
        bits = PG_ACCESSED_MASK | (write ? PG_DIRTY_MASK : 0);
        if ((entry & bits) == bits || smp_entry_cas(s->uc, at, entry, entry | bits, 4)) {
            entry |= bits;
            break;
        }
    }
    bits = table & entry & PG_RW_MASK && entry & PG_DIRTY_MASK ? PAGE_WRITE : 0;
    return map(s, address, entry >> 12, PAGE_READ | PAGE_EXEC | (int)bits, mmu_idx);
}

/* ---- what the worker does between two runs --------------------------------------- */

static struct smp_engine *engine(void *handle)
{
    return ((struct uc_struct *)handle)->smp;
}

/* The Guest's registers where the text puts them. */
static struct lguest_regs *registers_of(struct smp_control *c, uint32_t vcpu)
{
    uint32_t page = SMP_SWITCHER_TEXT_PAGES + SMP_SWITCHER_VCPU_PAGES * vcpu + 1;

    return (struct lguest_regs *)((char *)c + c->switcher_offset + page * 4096ull) - 1;
}

void smp_lguest_read_regs(struct smp_control *c, uint32_t vcpu, struct smp_regs *out)
{
    const struct lguest_regs *r = registers_of(c, vcpu);
    const uint32_t gpr[8] = { r->eax, r->ecx, r->edx, r->ebx, r->esp, r->ebp, r->esi, r->edi };
    const uint32_t segments[6] = { r->es, r->cs, r->ss, r->ds, r->fs, r->gs };

    for (int i = 0; i < 8; i++) {
        out->gpr[i] = gpr[i];
    }
    for (int i = 0; i < 6; i++) {
        out->seg_selector[i] = segments[i];
    }
    out->rip = r->eip;
    out->rflags = r->eflags;
    out->cpl = r->cs & 3;
}

/* The first page of this vCPU's two. */
static uint32_t registers_page(struct smp_engine *s)
{
    uint32_t page = SMP_SWITCHER_TEXT_PAGES + SMP_SWITCHER_VCPU_PAGES * s->index;

    return (uint32_t)s->control->switcher_address + (page << 12);
}

static void load_segment(CPUX86State *env, int segment, int slot, uint32_t type)
{
    uint32_t flags = DESC_G_MASK | DESC_B_MASK | DESC_P_MASK | DESC_S_MASK | DESC_A_MASK | DESC_W_MASK | type;

    cpu_x86_load_seg_cache(env, segment, (unsigned)slot << 3, 0, 0xffffffff, flags);
}

/* Where the text's HLT left it, so to speak: in ring 0, about to pop the registers. */
void smp_lguest_reset(void *handle)
{
    struct smp_engine *s = engine(handle);
    CPUState *cpu = s->uc->cpu;
    CPUX86State *env = cpu->env_ptr;
    uint32_t state = registers_page(s) + 4096;

    smp_engine_reset(s);
    cpu_x86_update_cr0(env, CR0_LGUEST);
    cpu_x86_update_cr4(env, CR4_OSFXSR_MASK | CR4_OSXMMEXCPT_MASK);
    s->vcpu->linear = 1;
    s->regs = registers_of(s->control, s->index);
    load_segment(env, R_CS, LGUEST_GDT_CS, DESC_CS_MASK);
    for (int i = 0; i < 6; i++) {
        if (i != R_CS) {
            load_segment(env, i, LGUEST_GDT_DS, 0);
        }
    }
    env->gdt.base = state + offsetof(struct lguest_ro_state, guest_gdt);
    env->gdt.limit = sizeof(((struct lguest_ro_state *)0)->guest_gdt) - 1;
    env->idt.base = state + offsetof(struct lguest_ro_state, guest_idt);
    env->idt.limit = sizeof(((struct lguest_ro_state *)0)->guest_idt) - 1;
    env->tr.selector = LGUEST_GDT_TSS << 3;
    env->tr.base = state + offsetof(struct lguest_ro_state, tss);
    env->tr.limit = sizeof(((struct lguest_ro_state *)0)->tss) - 1;
    env->tr.flags = DESC_P_MASK | 9 << DESC_TYPE_SHIFT; /* 32-bit TSS; the engine keeps no busy bit here */
    env->ldt.limit = 0; /* none: after RESET it is what lies at address 0, up to 64 KiB of it */
    env->ldt.flags = 0;
    env->regs[R_ESP] = registers_page(s) + 4096 - sizeof(struct lguest_regs);
    env->eip = (uint32_t)s->control->switcher_address + smp_switcher_enter();
    env->eflags = 2;
    cpu->halted = 0;
}

void smp_lguest_new_pgdir(void *handle, uint32_t pgdir)
{
    struct smp_engine *s = engine(handle);

    s->vcpu->linear = 0;
    cpu_x86_update_cr3(s->uc->cpu->env_ptr, pgdir & ~0xfffu);
}

void smp_lguest_flush(void *handle)
{
    tlb_flush(engine(handle)->uc->cpu);
}

void smp_lguest_flush_page(void *handle, uint32_t address)
{
    tlb_flush_page(engine(handle)->uc->cpu, address & ~0xfffu);
}

void smp_lguest_set_ts(void *handle, uint32_t on)
{
    CPUX86State *env = engine(handle)->uc->cpu->env_ptr;

    cpu_x86_update_cr0(env, on ? CR0_LGUEST | CR0_TS_MASK : CR0_LGUEST);
}

uint32_t smp_lguest_cr2(void *handle)
{
    return (uint32_t)((CPUX86State *)engine(handle)->uc->cpu->env_ptr)->cr[2];
}
