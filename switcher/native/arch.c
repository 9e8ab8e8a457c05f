/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Architecture that stock Unicorn leaves to user hooks, restored for a whole
 * system: SYSCALL/SYSENTER, CPUID, MSRs, TSC, ports, interrupt acknowledge,
 * accessed/dirty bits.  References: Intel SDM volumes 2 and 3, AMD APM volume 3.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/ioport.h"
#include "uc_priv.h"
#include "coherence.h"
#include "engine.h"

#define CPUID_LEVEL 0x16
#define BUS_HZ 1000000000u /* the local APIC timer and the "crystal": 1 count = 1 ns */

static struct smp_engine *engine(CPUX86State *env)
{
    return env->uc->smp;
}

/* What the local APIC has for us now is what the engine's loop sees; true: an interrupt. */
bool smp_look_at_lapic(struct smp_engine *s)
{
    CPUState *cpu = s->uc->cpu;

    if (smp_lapic_pending(s->control, s->index) < 0) {
        cpu->interrupt_request &= ~CPU_INTERRUPT_HARD; /* a raised TPR, a disabled APIC */
        return false;
    }
    cpu->interrupt_request |= CPU_INTERRUPT_HARD;
    return true;
}

/* In the middle of a block, by our own doing (EOI, TPR): the loop shall come to it. */
void smp_reconsider(struct smp_engine *s)
{
    if (smp_look_at_lapic(s)) {
        s->force = 1;
        __atomic_store_n(&cpu_neg(s->uc->cpu)->icount_decr.u16.high, -1, __ATOMIC_SEQ_CST);
    }
}

int smp_ack_interrupt(CPUX86State *env)
{
    struct smp_engine *s = engine(env);
    int vector;

    if (s->control->machine == SMP_MACHINE_LGUEST) {
        return LGUEST_HOST_VECTOR;
    }
    vector = smp_lapic_ack(s->control, s->index);
    smp_look_at_lapic(s);
    return vector;
}

/* ---- accessed and dirty bits (SDM 4.8) ------------------------------------ */

bool smp_entry_cas(struct uc_struct *uc, uint64_t address, uint64_t old, uint64_t new_, int size)
{
    struct smp_engine *s = uc->smp;
    void *host = s->ram + address;

    if (address > s->ram_size - size) {
        return true; /* a table outside RAM: nothing there remembers bits */
    }
    if (size == 8) {
        return __atomic_compare_exchange_n((uint64_t *)host, &old, new_, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
    }
    uint32_t old32 = (uint32_t)old;
    return __atomic_compare_exchange_n((uint32_t *)host, &old32, (uint32_t)new_, false,
                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* ---- SYSCALL, SYSENTER ------------------------------------------------------ */

#define FLAT (DESC_G_MASK | DESC_P_MASK | DESC_S_MASK | DESC_A_MASK)
#define FLAT_DATA (FLAT | DESC_B_MASK | DESC_W_MASK)
#define FLAT_CODE32 (FLAT | DESC_B_MASK | DESC_CS_MASK | DESC_R_MASK)
#define FLAT_CODE64 (FLAT | DESC_L_MASK | DESC_CS_MASK | DESC_R_MASK)

static void enter_kernel(CPUX86State *env, uint32_t selector, bool long_mode)
{
    selector &= 0xfffc;
    cpu_x86_load_seg_cache(env, R_CS, selector, 0, 0xffffffff, long_mode ? FLAT_CODE64 : FLAT_CODE32);
    cpu_x86_load_seg_cache(env, R_SS, selector + 8, 0, 0xffffffff, FLAT_DATA);
}

/* The checks come before a user's hooks: what faults was not executed. */
void smp_check_syscall(CPUX86State *env, uintptr_t ra)
{
    if (!(env->efer & MSR_EFER_SCE)) {
        raise_exception_err_ra(env, EXCP06_ILLOP, 0, ra);
    }
}

void smp_check_sysenter(CPUX86State *env, uintptr_t ra)
{
    if (env->sysenter_cs == 0) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
    }
}

void smp_syscall(CPUX86State *env, int next_eip_addend)
{
    uint32_t selector = (env->star >> 32) & 0xffff;
    uint32_t flags = cpu_compute_eflags(env);

    if (env->hflags & HF_LMA_MASK) {
        target_ulong target = env->hflags & HF_CS64_MASK ? env->lstar : env->cstar;

        env->regs[R_ECX] = env->eip + next_eip_addend;
        env->regs[11] = flags & ~RF_MASK;
        enter_kernel(env, selector, true);
        cpu_load_eflags(env, flags & ~env->fmask & ~RF_MASK,
                        ~(CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C | DF_MASK));
        env->eip = target;
    } else {
        env->regs[R_ECX] = (uint32_t)(env->eip + next_eip_addend);
        enter_kernel(env, selector, false);
        env->eflags &= ~(IF_MASK | RF_MASK | VM_MASK);
        env->eip = (uint32_t)env->star;
    }
}

void smp_sysenter(CPUX86State *env)
{
    bool long_mode = env->hflags & HF_LMA_MASK;

    env->eflags &= ~(VM_MASK | IF_MASK | RF_MASK);
    enter_kernel(env, env->sysenter_cs, long_mode);
    env->regs[R_ESP] = long_mode ? env->sysenter_esp : (uint32_t)env->sysenter_esp;
    env->eip = long_mode ? env->sysenter_eip : (uint32_t)env->sysenter_eip;
}

/* ---- CPUID, TSC, MSRs -------------------------------------------------------- */

static uint32_t log2_up(uint32_t n)
{
    return n > 1 ? 32 - __builtin_clz(n - 1) : 0;
}

void smp_cpuid(CPUX86State *env, uint32_t leaf, uint32_t subleaf, uint32_t *eax, uint32_t *ebx,
               uint32_t *ecx, uint32_t *edx)
{
    struct smp_engine *s = engine(env);
    uint32_t vcpus = s->control->vcpus, id = s->vcpu->lapic.id >> 24;

    s->vcpu->counters.cpuid++;
    if (leaf > 0xd && leaf <= CPUID_LEVEL) {
        *eax = *ebx = *ecx = *edx = 0; /* the model ends at 0xd */
    }
    switch (leaf) {
    case 0:
        *eax = CPUID_LEVEL;
        break;
    case 1:
        *ebx = (*ebx & 0xffff) | vcpus << 16 | id << 24;
        *ecx |= CPUID_EXT_HYPERVISOR | CPUID_EXT_TSC_DEADLINE_TIMER;
        *ecx &= ~(CPUID_EXT_MONITOR | CPUID_EXT_X2APIC);
        *edx |= CPUID_APIC;
        *edx = vcpus > 1 ? *edx | CPUID_HT : *edx & ~CPUID_HT;
        break;
    case 4: /* caches: every vCPU a core of one package */
        if (*eax & 31) {
            *eax = (*eax & 0x3ffffff) | (vcpus - 1) << 26;
        }
        break;
    case 6:
        *eax |= 1 << 2; /* ARAT: the timer never stops */
        break;
    case 0xb: /* extended topology: one thread a core, all cores in one package */
        *eax = subleaf == 1 ? log2_up(vcpus) : 0;
        *ebx = subleaf == 0 ? 1 : subleaf == 1 ? vcpus : 0;
        *ecx = (subleaf & 0xff) | (subleaf < 2 ? subleaf + 1 : 0) << 8;
        *edx = id;
        break;
    case 0x15: /* TSC = crystal * ebx / eax */
        *eax = BUS_HZ / 1000;
        *ebx = (uint32_t)s->control->tsc_khz;
        *ecx = BUS_HZ;
        *edx = 0;
        break;
    case 0x16:
        *eax = *ebx = (uint32_t)(s->control->tsc_khz / 1000);
        *ecx = 100;
        *edx = 0;
        break;
    case 0x40000000: /* "smpguestsmpg": see the Host's "afraid of being a guest" */
        *eax = 0x40000001;
        *ebx = 0x67706d73;
        *ecx = 0x74736575;
        *edx = 0x67706d73;
        break;
    case 0x40000001: /* docs/lguest-smp.md */
        *eax = s->control->machine == SMP_MACHINE_LGUEST;
        *ebx = vcpus;
        *ecx = s->index;
        *edx = 0;
        break;
    case 0x80000007:
        *edx |= 1 << 8; /* invariant TSC */
        break;
    }
}

uint64_t smp_tsc(CPUX86State *env)
{
    return smp_guest_tsc(engine(env)->control);
}

uint32_t smp_tpr(CPUX86State *env)
{
    return smp_lapic_tpr(engine(env)->control, engine(env)->index) >> 4;
}

void smp_set_tpr(CPUX86State *env, uint32_t tpr)
{
    smp_lapic_set_tpr(engine(env)->control, engine(env)->index, tpr << 4);
    smp_reconsider(engine(env));
}

#define MSR_TSC_ADJUST_ 0x3b
#define MSR_TSC_DEADLINE_ 0x6e0

bool smp_rdmsr(CPUX86State *env, uint32_t msr, uint64_t *value, uintptr_t ra)
{
    struct smp_engine *s = engine(env);
    int fault = 0;

    s->vcpu->counters.msr++;
    switch (msr) {
    case MSR_IA32_TSC:
        *value = smp_tsc(env) + env->tsc_offset;
        return true;
    case MSR_TSC_ADJUST_:
        *value = env->tsc_adjust;
        return true;
    case MSR_IA32_APICBASE:
    case MSR_TSC_DEADLINE_:
        *value = smp_lapic_msr_read(s->control, s->index, msr, &fault);
        if (fault) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
        }
        if (msr == MSR_TSC_DEADLINE_ && *value) {
            *value += env->tsc_offset;
        }
        return true;
    }
    return false;
}

/* A deadline of the Guest's, whose TSC may be offset from the machine's, in the machine's: 1 when it
 * is past, UINT64_MAX when it never comes. */
static uint64_t machine_deadline(CPUX86State *env, uint64_t deadline)
{
    uint64_t now = smp_tsc(env), left = deadline - (now + env->tsc_offset);

    return deadline <= now + env->tsc_offset ? 1 : now + left < now ? UINT64_MAX : now + left;
}

/* The TSC jumps; an armed deadline stays where it is, so its time moves (SDM 11.5.4.1). */
static void shift_tsc(CPUX86State *env, uint64_t by)
{
    struct smp_engine *s = engine(env);
    int fault = 0;
    uint64_t deadline = smp_lapic_msr_read(s->control, s->index, MSR_TSC_DEADLINE_, &fault);

    deadline += deadline ? env->tsc_offset : 0;
    env->tsc_offset += by;
    env->tsc_adjust += by;
    if (deadline) {
        deadline = machine_deadline(env, deadline);
        smp_lapic_msr_write(s->control, s->index, MSR_TSC_DEADLINE_, deadline, &fault);
        smp_reconsider(s);
    }
}

bool smp_wrmsr(CPUX86State *env, uint32_t msr, uint64_t value, uintptr_t ra)
{
    struct smp_engine *s = engine(env);
    int fault = 0;

    s->vcpu->counters.msr++;
    switch (msr) {
    case MSR_IA32_TSC:
        shift_tsc(env, value - (smp_tsc(env) + env->tsc_offset));
        return true;
    case MSR_TSC_ADJUST_:
        shift_tsc(env, value - env->tsc_adjust);
        return true;
    case MSR_TSC_DEADLINE_:
        value = value ? machine_deadline(env, value) : 0; /* 0 disarms */
        /* fall through */
    case MSR_IA32_APICBASE:
        smp_lapic_msr_write(s->control, s->index, msr, value, &fault);
        if (fault) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
        }
        smp_reconsider(s);
        return true;
    }
    return false;
}

/* ---- ports --------------------------------------------------------------------- */

static bool hooked(struct uc_struct *uc, int insn)
{
    struct hook *hook;
    HOOK_FOREACH_VAR_DECLARE;

    HOOK_FOREACH(uc, hook, UC_HOOK_INSN) {
        if (!hook->to_delete && hook->insn == insn) {
            return true;
        }
    }
    return false;
}

/* A user's IN hook replaces the device; an OUT hook watches. */
uint64_t smp_port_in(CPUX86State *env, uint32_t port, int size, uintptr_t ra)
{
    struct smp_engine *s = engine(env);
    uint64_t value;

    if (hooked(s->uc, UC_X86_INS_IN)) {
        return size == 1   ? cpu_inb(s->uc, port, ra)
               : size == 2 ? cpu_inw(s->uc, port, ra)
                           : cpu_inl(s->uc, port, ra);
    }
    value = smp_pio_read(s->control, s->index, port & 0xffff, size);
    smp_after_wait(s);
    return value;
}

void smp_port_out(CPUX86State *env, uint32_t port, int size, uint32_t data, uintptr_t ra)
{
    struct smp_engine *s = engine(env);

    if (hooked(s->uc, UC_X86_INS_OUT)) {
        if (size == 1) {
            cpu_outb(s->uc, port, data, ra);
        } else if (size == 2) {
            cpu_outw(s->uc, port, data, ra);
        } else {
            cpu_outl(s->uc, port, data, ra);
        }
    }
    smp_pio_write(s->control, s->index, port & 0xffff, size, data);
    smp_after_wait(s);
}
