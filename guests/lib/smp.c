/* All CPUs: giving them work, waiting for each other. How they wake is each machine's own matter: start.c. */
#include "guest.h"

struct cpu cpus[MAX_CPUS];
uint32_t ncpus = 1;
uint32_t wait_seconds = 60;

static bool never_halt;                                 /* "nohlt" on the command line */

void read_options(void)
{
    scale = option_number("scale", 1);
    wait_seconds = option_number("wait", 60);
    never_halt = option("nohlt");
}

void announce(const char *source)
{
    printf("%s: %d-bit, %u CPU%s (%s), %u MB, TSC %u MHz (%s)\n", guest_name, BITS, ncpus, ncpus == 1 ? "" : "s", source,
           (uint32_t)(memory_bytes >> 20), tsc_khz / 1000, tsc_source);
}

/* ---- work ---- */

_Noreturn void idle(struct cpu *c)
{
    for (;;) {
        struct wait w = { 0, 0, 0 };                    /* no description: this wait has no end */
        while (!c->job) {
            if (wait_spin(&w, true))
                continue;
            wait_halt_begin();
            if (!c->job)
                wait_halt();
            wait_halt_end();
        }
        c->job(c->job_arg);
        compiler_barrier();
        c->job = 0;
        wake(0);
    }
}

void run_on(uint32_t cpu, job_t job, void *arg)
{
    cpus[cpu].job_arg = arg;
    compiler_barrier();
    cpus[cpu].job = job;
    wake(cpu);
}

void wait_done(uint32_t cpu) { sleep_until(!cpus[cpu].job, "another CPU to finish its work"); }

void run_on_first(uint32_t n, job_t job, void *arg)
{
    for (uint32_t i = 1; i < n; i++)
        run_on(i, job, arg);
    job(arg);
    for (uint32_t i = 1; i < n; i++)
        wait_done(i);
}

void run_on_all(job_t job, void *arg) { run_on_first(ncpus, job, arg); }

/* ---- waiting ---- */

bool wait_spin(struct wait *w, bool may_halt)
{
    if (++w->spins < 64)                                /* the answer is often only nanoseconds away */
        return true;
    pause();
    if (w->spins % 16)
        return true;
    uint64_t now = rdtsc();
    if (!w->start)
        w->start = now;
    if (w->what && now - w->start > (uint64_t)wait_seconds * 1000 * tsc_khz)
        fail("CPU %u waited %u s in vain for %s", cpu_index(), wait_seconds, w->what);
    if (!may_halt || never_halt || now - w->start < 100u * (tsc_khz / 1000))     /* 100 us */
        return true;
    /* Where the timer cannot watch over the sleep, CPU 0 stays awake, so that a lost wake-up ends as a sentence. */
    return !irqs_on() || (cpu_index() == 0 && this_cpu()->timer_taken);
}

/* Pairs with wake(): there the condition is written before `sleeping` is read, here `sleeping` is written before the
   condition is read again, both with a full fence between. One of the two sees the other. */
void wait_halt_begin(void)
{
    cli();
    this_cpu()->sleeping = 1;
    full_fence();
}

void wait_halt(void)
{
    struct cpu *c = this_cpu();
    c->naps++;
    if (!c->timer_taken)                                /* a look around every second, to notice when time is up */
        timer_start(VECTOR_TICK, 1000000000);
    sti_hlt();
}

void wait_halt_end(void)
{
    this_cpu()->sleeping = 0;
    sti();
}

void wake(uint32_t cpu)
{
    full_fence();
    if (cpus[cpu].sleeping)
        ipi(cpu, VECTOR_WAKE);
}

bool try_lock(struct lock *l) { return !l->held && !__atomic_exchange_n(&l->held, 1, __ATOMIC_ACQUIRE); }
void lock(struct lock *l) { spin_until(try_lock(l), "a lock"); }
void unlock(struct lock *l) { __atomic_store_n(&l->held, 0, __ATOMIC_RELEASE); }

static bool last_to_arrive(struct barrier *b, uint32_t n)
{
    if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_SEQ_CST) < n)
        return false;
    b->arrived = 0;                                     /* nobody looks at it before the phase changes */
    __atomic_store_n(&b->phase, b->phase + 1, __ATOMIC_SEQ_CST);
    return true;
}

void barrier(struct barrier *b, uint32_t n)
{
    uint32_t phase = b->phase;                          /* it cannot change before this CPU has arrived */
    if (!last_to_arrive(b, n)) {
        sleep_until(b->phase != phase, "the other CPUs at a barrier");
        return;
    }
    for (uint32_t i = 0; i < ncpus; i++)
        if (i != cpu_index())
            wake(i);                                    /* sends nothing to those who are awake */
}

void spin_barrier(struct barrier *b, uint32_t n)
{
    uint32_t phase = b->phase;
    if (!last_to_arrive(b, n))
        spin_until(b->phase != phase, "the other CPUs at a barrier");
}
