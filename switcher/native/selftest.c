/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Proves, in milliseconds, the engine that was actually loaded: two vCPUs (two
 * engines on two threads) on one RAM, kicked all the time.
 *
 *   LOCK   both `lock inc` one counter                     2 N at the end
 *   xchg   both take a lock made of xchg around `inc`      2 N at the end
 *   fence  x = 1, mfence, read y against y = 1, mfence, read x: never both 0
 *   RMW    each `inc`s a counter of its own under kicks    N at the end, not more
 *
 * An engine that fails here may not run two vCPUs in parallel.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "uc_priv.h"
#include <pthread.h>
#include <sys/mman.h>
#include "coherence.h"
#include "engine.h"

#define RAM_SIZE 0x100000u
#define ROUNDS 4096u
#define CODE(i) (0x1000u * ((i) + 1)) /* vCPU 1 by SIPI, so below 1 MB */
#define COUNTERS 0x8000u              /* lock inc, xchg lock, under the lock, own 0, own 1 */
#define FLAGS(i) (0x10000u + 0x10000u * (i))   /* x[], y[] */
#define SEEN(i) (0x30000u + 0x10000u * (i))    /* what each read of the other's */
#define TRANSLATIONS (4u << 20)       /* bytes: this runs in the Host, whose memory may be limited */
#define WAIT_NS 20000000000ull /* a busy host may give two threads little */
#define LEAVE_NS 1000000000ull /* how long a kicked vCPU may take to see that the Guest is dead */

struct runner {
    struct uc_struct *uc;
    uint32_t finished; /* [atomic] */
};

struct test {
    struct smp_control *control;
    uint8_t *ram;
    struct uc_struct *uc[2];
    struct runner runners[2];
    bool abandoned; /* a thread still runs in all this */
};

/* The program, position free, written once as bytes: 32-bit code; vCPU 1 enters in real mode,
 * where the same bytes mean 16-bit operands, so each instruction gets the prefixes it needs. */
static uint8_t *emit(uint8_t *at, bool real_mode, const char *hex)
{
    unsigned byte;

    if (real_mode) {
        *at++ = 0x66; /* 32-bit operands */
        *at++ = 0x67; /* 32-bit addresses */
    }
    for (; sscanf(hex, "%2x", &byte) == 1; hex += 2) {
        *at++ = (uint8_t)byte;
    }
    return at;
}

static uint8_t *emit_address(uint8_t *at, bool real_mode, const char *hex, uint32_t address)
{
    at = emit(at, real_mode, hex);
    memcpy(at, &address, 4);
    return at + 4;
}

static uint8_t *jump(uint8_t *at, uint8_t opcode, const uint8_t *target)
{
    *at++ = opcode;
    *at = (uint8_t)(target - (at + 1));
    return at + 1;
}

static void write_program(uint8_t *ram, uint32_t me)
{
    bool real = me == 1;
    uint8_t *at = ram + CODE(me), *top, *spin;

    at = emit_address(at, real, "b9", ROUNDS);                      /* mov ecx, ROUNDS */
    top = at;
    at = emit_address(at, real, "f0ff05", COUNTERS);                /* lock inc [0] */
    spin = at;
    at = emit_address(at, real, "b8", 1);                           /* mov eax, 1 */
    at = emit_address(at, real, "8705", COUNTERS + 4);              /* xchg eax, [1] */
    at = emit(at, real, "85c0");                                    /* test eax, eax */
    at = jump(at, 0x75, spin);                                      /* jnz */
    at = emit_address(at, real, "ff05", COUNTERS + 8);              /* inc [2] */
    at = emit_address(at, real, "c705", COUNTERS + 4);              /* mov [1], 0 */
    memset(at, 0, 4);
    at += 4;
    at = emit_address(at, real, "ff05", COUNTERS + 12 + 4 * me);    /* inc own */
    at = emit_address(at, real, "c7048d", FLAGS(me));               /* mov mine[ecx * 4], 1 */
    memcpy(at, "\1\0\0\0", 4);
    at += 4;
    at = emit(at, false, "0faef0");                                 /* mfence */
    at = emit_address(at, real, "8b048d", FLAGS(!me));              /* mov eax, other[ecx * 4] */
    at = emit_address(at, real, "89048d", SEEN(me));                /* mov seen[ecx * 4], eax */
    at = emit(at, real, "49");                                      /* dec ecx */
    at = emit(at, false, real ? "0f85" : "0f85");                   /* jnz top, near */
    if (real) {
        int16_t distance = (int16_t)(top - (at + 2));
        memcpy(at, &distance, 2);
        at += 2;
    } else {
        int32_t distance = (int32_t)(top - (at + 4));
        memcpy(at, &distance, 4);
        at += 4;
    }
    emit(at, false, "faf4");                                        /* cli; hlt */
}

static void *run_vcpu(void *opaque)
{
    struct runner *r = opaque;
    struct smp_engine *s = r->uc->smp;

    /* vCPU 1 halts once before its SIPI is looked at; both halt for good at the end. */
    while (smp_run(r->uc) == SMP_EXIT_HALT && s->vcpu->lapic.wait_sipi) {
    }
    __atomic_store_n(&r->finished, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static uint32_t word(struct test *t, uint32_t address)
{
    return *(uint32_t *)(t->ram + address);
}

static const char *verdict(struct test *t)
{
    if (word(t, COUNTERS) != 2 * ROUNDS) {
        return "LOCKed instructions lose updates";
    }
    if (word(t, COUNTERS + 8) != 2 * ROUNDS) {
        return "xchg does not exclude";
    }
    if (word(t, COUNTERS + 12) != ROUNDS || word(t, COUNTERS + 16) != ROUNDS) {
        return "kicks repeat or drop read-modify-writes";
    }
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        if (!word(t, SEEN(0) + 4 * i) && !word(t, SEEN(1) + 4 * i)) {
            return "MFENCE does not order";
        }
    }
    return NULL;
}

static const char *open_engines(struct test *t)
{
    for (uint32_t i = 0; i < 2; i++) {
        write_program(t->ram, i);
        smp_engine_prepare(t->control, t->ram, i);
        if (uc_open(UC_ARCH_X86, UC_MODE_64, &t->uc[i])) {
            return "it cannot be opened";
        }
        t->uc[i]->tcg_buffer_size = TRANSLATIONS;
        if (uc_mem_map_ptr(t->uc[i], 0, RAM_SIZE, UC_PROT_ALL, t->ram) || smp_engine_attach(t->uc[i])) {
            return "it cannot be opened";
        }
    }
    return NULL;
}

static bool finished(struct test *t, int i)
{
    return __atomic_load_n(&t->runners[i].finished, __ATOMIC_SEQ_CST);
}

/* Kick those that run until all have finished; false at `until`. */
static bool kick_until_finished(struct test *t, int started, uint64_t until)
{
    while (!(finished(t, 0) && (started < 2 || finished(t, 1)))) {
        if (smp_now_ns() > until) {
            return false;
        }
        smp_kick(t->control, 0);
        smp_kick(t->control, 1);
        sched_yield();
    }
    return true;
}

static const char *run_both(struct test *t)
{
    pthread_t threads[2];
    const char *why = NULL;
    int started = 0;

    smp_vcpu(t->control, 1)->lapic.sipi_vector = CODE(1) >> 12;
    smp_event(t->control, 1, SMP_EVENT_SIPI);
    while (!why && started < 2) {
        t->runners[started].uc = t->uc[started];
        if (pthread_create(&threads[started], NULL, run_vcpu, &t->runners[started])) {
            why = "no thread can be started";
        } else {
            started++;
        }
    }
    if (!why && !kick_until_finished(t, started, smp_now_ns() + WAIT_NS)) {
        why = "two vCPUs do not come to an end";
    }
    if (why && started) {
        smp_kill_guest(t->control, SMP_DEAD_HOST, 0, 0, why);
        if (!kick_until_finished(t, started, smp_now_ns() + LEAVE_NS)) {
            t->abandoned = true;
            why = "kicks do not stop a vCPU";
        }
    }
    for (int i = 0; i < started; i++) {
        if (t->abandoned) {
            pthread_detach(threads[i]);
        } else {
            pthread_join(threads[i], NULL);
        }
    }
    return why;
}

static const char *run_test(struct test *t)
{
    const char *why = open_engines(t);

    why = why ? why : run_both(t);
    return why ? why : verdict(t);
}

static void take_down(struct test *t, uint64_t size)
{
    for (int i = 0; i < 2; i++) {
        if (t->uc[i]) {
            uc_close(t->uc[i]);
        }
    }
    if (t->control != MAP_FAILED) {
        munmap(t->control, size);
    }
    if (t->ram != MAP_FAILED) {
        munmap(t->ram, RAM_SIZE);
    }
    g_free(t);
}

/* NULL: may run vCPUs in parallel.  Else why not; then a thread that cannot be stopped may be left. */
const char *smp_selftest(void)
{
    struct test *t = g_new0(struct test, 1);
    uint64_t size = smp_control_size(2, RAM_SIZE, smp_cpu_state_size());
    const char *why = "there is no memory to try it";

    t->control = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    t->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (t->control != MAP_FAILED && t->ram != MAP_FAILED &&
        !smp_control_init(t->control, size, 2, RAM_SIZE, smp_cpu_state_size(), 1000000)) {
        smp_vcpu(t->control, 0)->start_eip = CODE(0);
        smp_vcpu(t->control, 0)->start_mode = 32;
        t->control->spin_ns = 0;
        why = run_test(t);
    }
    if (!t->abandoned) {
        take_down(t, size);
    }
    smp_engine_prepare(NULL, NULL, 0);
    return why;
}
