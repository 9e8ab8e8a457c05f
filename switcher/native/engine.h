/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the engine's hunks call.  Everything here is for an engine that was
 * attached to a control block (uc->smp != NULL), unless it says otherwise;
 * an engine that was not is stock Unicorn.
 */
#ifndef SMPGUEST_ENGINE_H
#define SMPGUEST_ENGINE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "control.h"

struct uc_struct;
struct CPUState;
struct CPUX86State;

/* A stretch of physical addresses that is not RAM; devices of the Host's may be in it. */
struct smp_nobody {
    struct smp_engine *s;
    uint64_t base;
};

/* The private half of a vCPU: one per engine, never shared. */
struct smp_engine {
    uint32_t write_locked;     /* a slow write holds the lock of `locked_page` */
    uint32_t index;
    uint32_t force;            /* look at what is pending even if not kicked */
    uint32_t outer;            /* SMP_EVENT_* that only smp_run()'s loop can serve */
    uint64_t locked_page;
    uint64_t fetch_granule;    /* last granule declared as code, + 1 */
    uint64_t code_bit;         /* ours in a page word: have translations */
    uint64_t fast_bit;         /* ours in a page word: may have fast write entries */
    struct smp_control *control;
    struct smp_vcpu *vcpu;
    struct lguest_regs *regs;  /* lguest: at the end of this vCPU's registers page */
    struct uc_struct *uc;
    uint8_t *ram;
    uint64_t ram_size;
    uint64_t *pages;
    uint64_t *granules;
    uint64_t deferred[64];     /* invalidations that arrived during a translation */
    uint32_t deferred_count;
    uint32_t recent[3];        /* the last exceptions, newest last: the story of a triple fault */
    uint32_t pauses;
    uint32_t pauses_per_yield;
    struct smp_nobody below_lapic;
    struct smp_nobody above_lapic;
};

static inline bool smp_dead(const struct smp_engine *s)
{
    return __atomic_load_n(&s->control->dead, __ATOMIC_SEQ_CST) != SMP_ALIVE;
}

/* ---- the loop (engine.c) ---- */
/* Is there anything to look at?  Asked at every turn of the engine's loop, so: inline. */
#define smp_kicked(cpu)                                                     \
    ((cpu)->uc->smp->force ||                                               \
     __atomic_load_n(&cpu_neg(cpu)->icount_decr.u16.high, __ATOMIC_RELAXED))
void cpu_exec_step_atomic(struct uc_struct *uc, struct CPUState *cpu); /* a hunk in cpu-exec.c */
bool smp_poll(struct CPUState *cpu);      /* true: leave cpu_exec() */
void smp_exception(struct CPUState *cpu);
void smp_triple_fault(struct CPUX86State *env);
void smp_guest_fatal(struct CPUState *cpu, const char *text) __attribute__((noreturn));
void *smp_cpu_memory(size_t size);        /* NULL: no control block prepared */
bool smp_release(struct uc_struct *uc);   /* at uc_close: true if the CPU state is not ours to free */
void smp_spin_hint(struct CPUX86State *env);    /* PAUSE */

/* ---- architecture that Unicorn left to hooks (arch.c) ---- */
int smp_ack_interrupt(struct CPUX86State *env);
bool smp_look_at_lapic(struct smp_engine *s);
void smp_reconsider(struct smp_engine *s);    /* after the Guest touched its local APIC */
void smp_check_syscall(struct CPUX86State *env, uintptr_t ra);
void smp_check_sysenter(struct CPUX86State *env, uintptr_t ra);
void smp_syscall(struct CPUX86State *env, int next_eip_addend);
void smp_sysenter(struct CPUX86State *env);
void smp_cpuid(struct CPUX86State *env, uint32_t leaf, uint32_t subleaf, uint32_t *eax,
               uint32_t *ebx, uint32_t *ecx, uint32_t *edx);
uint64_t smp_tsc(struct CPUX86State *env);
uint32_t smp_tpr(struct CPUX86State *env);
void smp_set_tpr(struct CPUX86State *env, uint32_t tpr);
bool smp_rdmsr(struct CPUX86State *env, uint32_t msr, uint64_t *value, uintptr_t ra);
bool smp_wrmsr(struct CPUX86State *env, uint32_t msr, uint64_t value, uintptr_t ra);
uint64_t smp_port_in(struct CPUX86State *env, uint32_t port, int size, uintptr_t ra);
void smp_port_out(struct CPUX86State *env, uint32_t port, int size, uint32_t data, uintptr_t ra);
bool smp_entry_cas(struct uc_struct *uc, uint64_t address, uint64_t old, uint64_t new_, int size);

/* ---- the Switcher's pages in every address space (window.c) ---- */
enum smp_window { SMP_NOT_IN_WINDOW, SMP_WINDOW_MAPPED, SMP_WINDOW_FAULT, SMP_WINDOW_DEAD };
extern bool smp_inner_rings;
enum smp_window smp_window_fill(struct CPUState *cpu, uint64_t address, int access, int mmu_idx);
int smp_window_map(struct smp_engine *s);

/* ---- the lguest machine (lguest.c) ---- */
enum smp_window smp_lguest_fill(struct smp_engine *s, uint32_t address, int access, int mmu_idx);
void smp_lguest_read_regs(struct smp_control *c, uint32_t vcpu, struct smp_regs *out);
void smp_engine_reset(struct smp_engine *s);  /* engine.c: registers as after RESET */

/* ---- code coherence, the engine's side (translate.c; protocol in coherence.c) ---- */
bool smp_write_is_fast(struct uc_struct *uc, const void *host);
bool smp_own_code(struct uc_struct *uc, const void *host);
bool smp_write_begin(struct uc_struct *uc, const void *host, unsigned size);
void smp_write_end_locked(struct uc_struct *uc);
void smp_code_fetch(struct uc_struct *uc, const void *host, unsigned size);
void smp_translated(struct uc_struct *uc);
void smp_code_gone(struct uc_struct *uc, uint64_t ram_addr);
void smp_drain(struct smp_engine *s, bool translating);
void smp_after_wait(struct smp_engine *s);

/* After the store that smp_write_begin() announced; called after every atomic too, so: cheap. */
#define smp_write_end(uc)                                                   \
    do {                                                                    \
        if ((uc)->smp && __builtin_expect((uc)->smp->write_locked, 0)) {    \
            smp_write_end_locked(uc);                                       \
        }                                                                   \
    } while (0)
#endif
