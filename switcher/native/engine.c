/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The Switcher's way in and out of the Guest: attach an engine to a control
 * block, run the Guest until a decision is needed, serve what is pending.
 *
 * Kick: whoever wants this vCPU's attention sets a pending bit, then stores -1
 * into icount_decr.u16.high of our CPU state, which lives in the control block.
 * Every translated block begins with a test of that word, so the engine comes
 * to smp_poll() at the next block start.  smp_poll() clears the word, fences,
 * and only then reads what is pending: a sender's "pending, then word" and our
 * "word, then pending" cannot both miss (the fence pairs with the sender's
 * locked instruction).  A pending bit set after our look finds the word clear
 * and sets it again.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "sysemu/cpus.h"
#include "uc_priv.h"
#include <sched.h>
#include "coherence.h"
#include "engine.h"

#define EVENTS_OUTER (SMP_EVENT_INIT | SMP_EVENT_SIPI | SMP_EVENT_STOP)
#define PHYSICAL_END (1ull << TCG_PHYS_ADDR_BITS)

/* What every translation is made for (curr_cflags() in exec-all.h). */
uint32_t smp_cflags = CF_PARALLEL;

/* The engine is linked from an archive: what nobody in it calls would be left out. */
__attribute__((used)) static const void *const kept[] = {smp_selftest, smp_lock, smp_dma_write, smp_asked,
                                                           smp_vcpu_up, smp_header_id};

static struct {
    struct smp_control *control;
    uint8_t *ram;
    uint32_t vcpu;
    void *cpu;
} prepared;

static uint16_t *kick_word(CPUState *cpu)
{
    return (uint16_t *)&cpu_neg(cpu)->icount_decr.u16.high;
}

/* ---- what is pending --------------------------------------------------------- */

/* lguest: whatever it is, run_guest() looks at it: a host interrupt brings the Guest out through the
 * Switcher (not from within: its text runs with IF clear).  The events are left for smp_take_irqs(). */
static void take_lguest_events(struct smp_engine *s)
{
    if (__atomic_load_n(&s->vcpu->events, __ATOMIC_SEQ_CST)) {
        s->uc->cpu->interrupt_request |= CPU_INTERRUPT_HARD;
    } else {
        s->uc->cpu->interrupt_request &= ~CPU_INTERRUPT_HARD; /* seen by run_guest() meanwhile */
    }
}

static void take_events(struct smp_engine *s)
{
    struct smp_vcpu *v = s->vcpu;
    uint32_t events = 0;

    if (s->control->machine == SMP_MACHINE_LGUEST) {
        take_lguest_events(s);
        return;
    }
    if (__atomic_load_n(&v->events, __ATOMIC_SEQ_CST)) {
        events = __atomic_exchange_n(&v->events, 0, __ATOMIC_SEQ_CST);
    }
    if (events & SMP_EVENT_TIMER) {
        smp_lapic_timer_event(s->control, s->index);
    }
    if (events & SMP_EVENT_NMI) {
        v->counters.nmis++;
        s->uc->cpu->interrupt_request |= CPU_INTERRUPT_NMI;
    }
    s->outer |= events & EVENTS_OUTER;
    smp_look_at_lapic(s);
}

/* Somebody needs the world to itself: step outside until it is done. */
static void park_if_asked(struct smp_engine *s)
{
    uint32_t owner = __atomic_load_n(&s->control->exclusive, __ATOMIC_SEQ_CST);

    if (owner && owner != s->index + 1) {
        s->vcpu->counters.parked++;
        smp_leave_guest(s->control, s->index);
        if (smp_enter_guest(s->control, s->index) == 0) { /* waits for exclusive == 0, or death */
            s->force = 1;                                 /* posts that came meanwhile */
        }
    }
}

/* At the head of the engine's loop, not inside any block.  True: leave cpu_exec(). */
bool smp_poll(CPUState *cpu)
{
    struct smp_engine *s = cpu->uc->smp;

    do {
        s->force = 0;
        __atomic_store_n(kick_word(cpu), 0, __ATOMIC_SEQ_CST);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with every sender: see the top */
        smp_drain(s, false);
        park_if_asked(s);
    } while (s->force);
    s->vcpu->counters.kicks++;
    take_events(s);
    if (s->outer || smp_dead(s)) {
        cpu->exception_index = EXCP_INTERRUPT;
        return true;
    }
    return false;
}

/* ---- stop the world ------------------------------------------------------------ */

/* One instruction alone in the world. */
static void run_exclusive(struct smp_engine *s)
{
    CPUState *cpu = s->uc->cpu;

#ifndef SMP_WITHOUT_PARK /* left out only to see that tests notice (tests/slow) */
    if (smp_exclusive_begin(s->control, s->index) < 0) {
        return; /* the Guest died */
    }
#endif
    smp_drain(s, false); /* we were outside, and others went on without us */
    /* A kick would keep the block from starting; what it announced is looked at afterwards. */
    __atomic_store_n(kick_word(cpu), 0, __ATOMIC_SEQ_CST);
    cpu->exception_index = -1;
    cpu_exec_step_atomic(s->uc, cpu);
    smp_exclusive_end(s->control, s->index);
    s->force = 1;
}

/* ---- reset, INIT, SIPI ---------------------------------------------------------- */

void smp_engine_reset(struct smp_engine *s)
{
    CPUState *cpu = s->uc->cpu;
    CPUX86State *env = cpu->env_ptr;

    cpu_reset(cpu);
    /* Unicorn's reset enables what user code likes; hardware does not (SDM table 9-1). */
    cpu_x86_update_cr4(env, 0);
    env->xcr0 = XSTATE_FP_MASK;
    env->old_exception = -1;
    cpu->interrupt_request = 0;
    cpu->exception_index = -1;
    cpu->halted = 0;
}

static void take_init(struct smp_engine *s)
{
    s->outer &= ~SMP_EVENT_INIT;
    if (s->index == 0) {
        smp_kill_guest(s->control, SMP_DEAD_RESTART, 0, 0, "vCPU 0 got an INIT: the machine resets");
        return;
    }
    smp_engine_reset(s);
    smp_lapic_reset(s->control, s->index, 0);
    /* A SIPI that is pending together with the INIT was sent after it (ipi.c): it stays. */
    s->vcpu->lapic.wait_sipi = 1;
    s->uc->cpu->halted = 1;
}

static void take_sipi(struct smp_engine *s)
{
    CPUX86State *env = s->uc->cpu->env_ptr;

    s->outer &= ~SMP_EVENT_SIPI;
    if (s->vcpu->lapic.wait_sipi) {
        uint32_t vector = s->vcpu->lapic.sipi_vector & 0xff;

        s->vcpu->lapic.wait_sipi = 0;
        env->eip = 0;
        cpu_x86_load_seg_cache(env, R_CS, vector << 8, vector << 12, env->segs[R_CS].limit,
                               env->segs[R_CS].flags);
        s->uc->cpu->halted = 0;
    }
}

#define FLAT_FLAGS (DESC_G_MASK | DESC_B_MASK | DESC_P_MASK | DESC_S_MASK | DESC_A_MASK | DESC_W_MASK)

/* The boot vCPU as its loader wants it (Multiboot 1, 3.2 for 32-bit). */
static void boot_state(struct smp_engine *s)
{
    struct smp_vcpu *v = s->vcpu;
    CPUX86State *env = s->uc->cpu->env_ptr;
    uint32_t code = FLAT_FLAGS | DESC_CS_MASK;

    if (v->start_mode == 64) {
        code = (code & ~DESC_B_MASK) | DESC_L_MASK;
        cpu_x86_update_cr4(env, CR4_PAE_MASK);
        cpu_x86_update_cr3(env, v->start_cr3);
        cpu_load_efer(env, MSR_EFER_LME);
        cpu_x86_update_cr0(env, CR0_PG_MASK | CR0_PE_MASK | CR0_ET_MASK);
    } else {
        cpu_x86_update_cr0(env, CR0_PE_MASK | CR0_ET_MASK);
    }
    cpu_x86_load_seg_cache(env, R_CS, 0x10, 0, 0xffffffff, code);
    for (int i = 0; i < 6; i++) {
        if (i != R_CS) {
            cpu_x86_load_seg_cache(env, i, 0x18, 0, 0xffffffff, FLAT_FLAGS);
        }
    }
    env->regs[R_EAX] = v->start_eax;
    env->regs[R_EBX] = v->start_ebx;
    env->regs[R_ESI] = v->start_esi;
    env->regs[R_EDX] = 0;
    env->eip = v->start_eip;
}

/* ---- halt ---------------------------------------------------------------------- */

static bool awake(struct smp_engine *s)
{
    CPUState *cpu = s->uc->cpu;

    if (s->outer || smp_dead(s)) {
        return true;
    }
    return !s->vcpu->lapic.wait_sipi && CPU_GET_CLASS(cpu)->has_work(cpu);
}

/* True: go on.  False: nothing came while we spun; let run_guest() sleep. */
static bool wait_halted(struct smp_engine *s)
{
    CPUState *cpu = s->uc->cpu;
    uint64_t until = 0;

    for (;;) {
        smp_poll(cpu);
        cpu->exception_index = -1;
        if (awake(s)) {
            return true;
        }
        if (!until) {
            until = smp_now_ns() + s->control->spin_ns;
        }
        while (!smp_kicked(cpu)) {
            if (smp_now_ns() >= until) {
                return false;
            }
            for (int i = 0; i < 16; i++) {
                __builtin_ia32_pause();
            }
        }
    }
}

/* ---- the loop --------------------------------------------------------------------- */

static int exit_for(struct smp_engine *s, int reason)
{
    s->vcpu->exit_reason = reason;
    s->vcpu->halted = s->uc->cpu->halted;
    s->vcpu->masked = !(((CPUX86State *)s->uc->cpu->env_ptr)->eflags & IF_MASK);
    return reason;
}

static int run(struct smp_engine *s)
{
    CPUState *cpu = s->uc->cpu;

    for (;;) {
        if (smp_dead(s)) {
            return SMP_EXIT_DEAD;
        }
        if (s->outer & SMP_EVENT_INIT) {
            take_init(s);
            continue;
        }
        if (s->outer & SMP_EVENT_SIPI) {
            take_sipi(s);
        }
        if (s->outer & SMP_EVENT_STOP) {
            s->outer &= ~SMP_EVENT_STOP;
            return SMP_EXIT_STOP;
        }
        if (cpu->halted) {
            if (!wait_halted(s)) {
                return SMP_EXIT_HALT;
            }
            if (s->outer || smp_dead(s)) {
                continue;
            }
        }
        switch (cpu_exec(s->uc, cpu)) {
        case EXCP_ATOMIC:
            run_exclusive(s);
            break;
        case EXCP_HLT:
        case EXCP_HALTED:
            if (s->control->machine == SMP_MACHINE_LGUEST) {
                cpu->halted = 0; /* the Switcher's HLT: back in the Host */
                s->vcpu->counters.hypercalls += s->regs->trapnum == LGUEST_TRAP_ENTRY;
                return SMP_EXIT_TRAP;
            }
            s->vcpu->counters.halts++;
            break;
        }
        if (s->uc->stop_request) {
            s->uc->stop_request = false;
            smp_kill_guest(s->control, SMP_DEAD_STOPPED, s->index, 0, "a user hook stopped the Guest");
        }
        if (s->uc->invalid_error) {
            snprintf(s->vcpu->last_error, SMP_TEXT, "the engine stopped: error %d at %#llx",
                     s->uc->invalid_error, (unsigned long long)s->uc->invalid_addr);
            return SMP_EXIT_ERROR;
        }
    }
}

int smp_run(void *handle)
{
    struct uc_struct *uc = handle;
    struct smp_engine *s = uc->smp;
    int reason;

    s->vcpu->counters.runs++;
    smp_enter_guest(s->control, s->index);
    smp_set_state(s->control, s->index, SMP_RUNNING);
    s->force = 1; /* posts and events from while we were outside */
    if (s->regs) {
        s->regs->trapnum = LGUEST_SWITCHER_TRAP; /* a fault of the Switcher itself leaves it so */
    }
    uc->nested_level = 1;
    uc->emulation_done = false;
    uc->invalid_error = UC_ERR_OK;
    uc->stop_request = uc->quit_request = false;
    uc->size_recur_mem = 0;
    uc->cpu->stop = uc->cpu->stopped = false;
    uc->cpu->created = true;
    uc->cpu->exit_request = 0;
    reason = run(s);
    uc->emulation_done = true;
    uc->nested_level = 0;
    smp_leave_guest(s->control, s->index);
    return exit_for(s, reason);
}

/* ---- what the hunks report -------------------------------------------------------- */

void smp_exception(CPUState *cpu)
{
    struct smp_engine *s = cpu->uc->smp;

    s->vcpu->counters.exceptions++;
    s->recent[0] = s->recent[1];
    s->recent[1] = s->recent[2];
    s->recent[2] = (uint32_t)cpu->exception_index;
}

void smp_triple_fault(CPUX86State *env)
{
    struct smp_engine *s = env->uc->smp;
    char text[SMP_TEXT];

    snprintf(text, sizeof(text), "vCPU %u: triple fault at %04x:%#llx (exceptions %u, %u, %u; cr2 %#llx, cr3 %#llx)",
             s->index, (unsigned)env->segs[R_CS].selector, (unsigned long long)env->eip, s->recent[0],
             s->recent[1], s->recent[2], (unsigned long long)env->cr[2], (unsigned long long)env->cr[3]);
    smp_kill_guest(s->control, SMP_DEAD_KILLED, s->index, 0, text);
}

/* QEMU would abort here ("invalid tss"); hardware would shut down. */
void smp_guest_fatal(CPUState *cpu, const char *what)
{
    struct smp_engine *s = cpu->uc->smp;
    CPUX86State *env = cpu->env_ptr;
    char text[SMP_TEXT];

    snprintf(text, sizeof(text), "vCPU %u: %s at %04x:%#llx", s->index, what,
             (unsigned)env->segs[R_CS].selector, (unsigned long long)env->eip);
    smp_kill_guest(s->control, SMP_DEAD_KILLED, s->index, 0, text);
    cpu->exception_index = EXCP_INTERRUPT;
    cpu_loop_exit(cpu);
}

/* A spinning Guest says so: be kind to the sibling thread, and let others have the core. */
void smp_spin_hint(CPUX86State *env)
{
    struct smp_engine *s = env->uc->smp;

    __builtin_ia32_pause();
    if (++s->pauses >= s->pauses_per_yield) {
        s->pauses = 0;
        sched_yield();
    }
}

/* ---- physical addresses that are not RAM -------------------------------------------- */

static uint64_t lapic_read(struct uc_struct *uc, uint64_t offset, unsigned size, void *opaque)
{
    struct smp_engine *s = opaque;
    uint32_t value = smp_lapic_read(s->control, s->index, (uint32_t)offset & ~3u);

    s->vcpu->counters.mmio_lapic++;
    return value >> 8 * (offset & 3);
}

static void lapic_write(struct uc_struct *uc, uint64_t offset, unsigned size, uint64_t value, void *opaque)
{
    struct smp_engine *s = opaque;

    s->vcpu->counters.mmio_lapic++;
    if (offset & 3) {
        return; /* SDM 11.4.1: undefined; nothing happens */
    }
    smp_lapic_write(s->control, s->index, (uint32_t)offset, (uint32_t)value);
    smp_reconsider(s);
    smp_after_wait(s); /* an EOI may have waited for room in the Host's ring */
}

static uint64_t nobody_read(struct uc_struct *uc, uint64_t offset, unsigned size, void *opaque)
{
    struct smp_nobody *w = opaque;
    uint64_t value = smp_mmio_read(w->s->control, w->s->index, w->base + offset, size);

    smp_after_wait(w->s);
    return value;
}

static void nobody_write(struct uc_struct *uc, uint64_t offset, unsigned size, uint64_t value, void *opaque)
{
    struct smp_nobody *w = opaque;

    smp_mmio_write(w->s->control, w->s->index, w->base + offset, size, value);
    smp_after_wait(w->s);
}

/* Every physical address leads somewhere: an access the engine knows nothing about would stop it,
 * and a Guest fetching from nowhere shall read ones and get its #UD. */
static int map_nobody(struct smp_engine *s, struct smp_nobody *w, uint64_t base, uint64_t end)
{
    w->s = s;
    w->base = base;
    if (uc_mmio_map(s->uc, base, end - base, nobody_read, w, nobody_write, w)) {
        return -1;
    }
    s->uc->memory_mapping(s->uc, base)->perms = UC_PROT_ALL;
    return 0;
}

static int map_physical(struct smp_engine *s)
{
    uint64_t lapic = SMP_LAPIC_BASE;

    if (map_nobody(s, &s->below_lapic, s->ram_size, lapic) ||
        uc_mmio_map(s->uc, lapic, 4096, lapic_read, s, lapic_write, s)) {
        return -1;
    }
    s->uc->memory_mapping(s->uc, lapic)->perms = UC_PROT_ALL;
    if (!s->control->switcher_address) {
        return map_nobody(s, &s->above_lapic, lapic + 4096, PHYSICAL_END);
    }
    return map_nobody(s, &s->above_lapic, lapic + 4096, SMP_SWITCHER_PHYSICAL) || smp_window_map(s);
}

/* ---- attach ---------------------------------------------------------------------------- */

uint64_t smp_cpu_state_size(void)
{
    return (sizeof(X86CPU) + 4095) & ~4095ull;
}

void smp_engine_prepare(struct smp_control *c, void *ram, uint32_t vcpu)
{
    prepared.control = c;
    prepared.ram = ram;
    prepared.vcpu = vcpu;
    prepared.cpu = NULL;
}

void *smp_cpu_memory(size_t size)
{
    struct smp_control *c = prepared.control;

    if (!c || prepared.cpu || size > c->cpu_stride) {
        return NULL; /* a second engine in this process is an ordinary one */
    }
    prepared.cpu = (char *)c + c->cpu_offset + prepared.vcpu * c->cpu_stride;
    return prepared.cpu;
}

bool smp_release(struct uc_struct *uc)
{
    bool shared = uc->smp || (uc->cpu && (void *)uc->cpu == prepared.cpu);

    g_free(uc->smp);
    uc->smp = NULL;
    return shared;
}

int smp_engine_attach(void *handle)
{
    struct uc_struct *uc = handle;
    struct smp_engine *s;
    struct smp_control *c = prepared.control;

    if (!c || !uc->init_done || (void *)uc->cpu != prepared.cpu || uc->smp) {
        return -EINVAL;
    }
    s = g_new0(struct smp_engine, 1);
    s->index = prepared.vcpu;
    s->control = c;
    s->vcpu = smp_vcpu(c, s->index);
    s->uc = uc;
    s->ram = prepared.ram;
    s->ram_size = c->ram_size;
    s->pages = smp_pages(c);
    s->granules = smp_granules(c);
    s->code_bit = PAGE_CODE(s->index);
    s->fast_bit = PAGE_FAST(s->index);
    /* Whom it waits for may have no core: sooner likely when there are more of us than cores, but
     * other programs want cores too.  A yield costs less than the spinning between two. */
    s->pauses_per_yield = c->vcpus > (uint32_t)sysconf(_SC_NPROCESSORS_ONLN) ? 64 : 512;
    if (qemu_ram_addr_from_host(uc, s->ram) != 0) {
        g_free(s);
        return -EFAULT; /* page words are indexed by ram_addr: RAM must be the first block */
    }
    /* The Host reads and writes RAM beside us, but has no locked operations that could meet ours. */
    smp_cflags = c->vcpus > 1 ? CF_PARALLEL : 0;
    uc->smp = s;
    uc->use_exits = 1; /* none: a Guest may execute any address */
    if (map_physical(s)) {
        return -ENOMEM;
    }
    smp_engine_reset(s);
    smp_lapic_reset(c, s->index, 1);
    if (c->machine == SMP_MACHINE_LGUEST) {
        smp_lguest_reset(uc);
    } else if (s->index == 0) {
        boot_state(s);
    } else {
        s->vcpu->lapic.wait_sipi = 1;
        uc->cpu->halted = 1;
    }
    __atomic_store_n(&s->vcpu->kick_offset,
                     (uint32_t)((char *)kick_word(uc->cpu) - (char *)uc->cpu), __ATOMIC_SEQ_CST);
    return 0;
}

/* ---- registers, also from another process ------------------------------------------------ */

int smp_read_regs(struct smp_control *c, uint32_t vcpu, struct smp_regs *out)
{
    X86CPU *cpu = (X86CPU *)((char *)c + c->cpu_offset + vcpu * c->cpu_stride);
    CPUX86State *env = &cpu->env;
    /* smp_regs order: es cs ss ds fs gs, as the engine's */
    if (vcpu >= c->vcpus || !smp_vcpu(c, vcpu)->kick_offset) {
        return -1;
    }
    for (int i = 0; i < 16; i++) {
        out->gpr[i] = env->regs[i];
    }
    out->rip = env->eip;
    out->rflags = env->eflags | (env->df < 0 ? DF_MASK : 0);
    if (env->cc_op <= CC_OP_CLR) { /* lazily kept; not worth a fault if it is in flux */
        out->rflags |= cpu_cc_compute_all(env, env->cc_op);
    }
    out->cr0 = env->cr[0];
    out->cr2 = env->cr[2];
    out->cr3 = env->cr[3];
    out->cr4 = env->cr[4];
    out->efer = env->efer;
    for (int i = 0; i < 6; i++) {
        out->seg_base[i] = env->segs[i].base;
        out->seg_selector[i] = env->segs[i].selector;
    }
    out->gdt_base = env->gdt.base;
    out->gdt_limit = env->gdt.limit;
    out->idt_base = env->idt.base;
    out->idt_limit = env->idt.limit;
    out->tr_base = env->tr.base;
    out->cpl = env->hflags & HF_CPL_MASK;
    out->halted = CPU(cpu)->halted;
    if (c->machine == SMP_MACHINE_LGUEST && out->cpl == 0) {
        smp_lguest_read_regs(c, vcpu, out); /* the CPU is in the Switcher: not what anybody asks for */
    }
    return 0;
}
