/* halt: no wake-up from HLT (lguest: the hypercall HALT) is ever lost, by IPI, timer or NMI, pending before it or arriving
   after it. */
#include "guest.h"

const char guest_name[] = "halt";

enum { VECTOR_PING = 0x41, VECTOR_ALARM = 0x51, VECTOR_WATCHDOG = 0x61, VECTOR_MASKED = 0x71 };

/* Changed only by this CPU's own interrupt handlers: if the interrupt is lost, nothing else makes the wait end. */
static struct { volatile uint32_t pings, alarms, nmis, masked, halts; } __attribute__((aligned(64))) mine[MAX_CPUS];

static void handle_ping(struct trap *t) { (void)t; mine[cpu_index()].pings++; irq_done(); }
static void handle_alarm(struct trap *t) { (void)t; mine[cpu_index()].alarms++; irq_done(); }
static void handle_masked(struct trap *t) { (void)t; mine[cpu_index()].masked++; irq_done(); }
static void handle_nmi(struct trap *t) { (void)t; mine[cpu_index()].nmis++; }

static void handle_watchdog(struct trap *t)
{
    (void)t;
    uint32_t i = cpu_index();
    fail("CPU %u: a wake-up was lost (%u s asleep; had %u pings, %u alarms)", i, wait_seconds, mine[i].pings, mine[i].alarms);
}

static void arm_watchdog(void)
{
    timer_start(VECTOR_WATCHDOG, wait_seconds * 1000000000ull);
}

/* The idiom under test: interrupts are off from the look at the condition until the HLT. */
#define halt_until(condition) do {      \
        cli();                          \
        while (!(condition)) {          \
            mine[cpu_index()].halts++;  \
            sti_hlt();                  \
            cli();                      \
        }                               \
        sti();                          \
    } while (0)

/* ---- a token goes round a ring of CPUs; everybody who does not hold it sleeps ---- */

struct ring { uint32_t first, size, rounds, before; };   /* before: pings had when nobody had started yet */
static struct ring ring_of[MAX_CPUS];

static void pass_token(void *unused)
{
    (void)unused;
    uint32_t i = cpu_index();
    struct ring r = ring_of[i];
    uint32_t next = r.first + (i - r.first + 1) % r.size, before = r.before;
    this_cpu()->timer_taken = true;
    for (uint32_t round = 1; round <= r.rounds; round++) {
        if (round % 256 == 1)
            arm_watchdog();
        if (i == r.first)
            ipi(next, VECTOR_PING);
        halt_until(mine[i].pings - before >= round);
        check(mine[i].pings - before == round, "CPU %u: %u pings in round %u", i, mine[i].pings - before, round);
        if (i != r.first)
            ipi(next, VECTOR_PING);
    }
    timer_stop();
    this_cpu()->timer_taken = false;
}

static uint32_t run_rings(uint32_t size, uint32_t rounds)
{
    uint32_t used = ncpus / size * size, halts = 0;
    for (uint32_t i = 0; i < used; i++) {
        ring_of[i] = (struct ring){ i / size * size, size, rounds, mine[i].pings };
        mine[i].halts = 0;
    }
    uint64_t start = rdtsc();
    run_on_first(used, pass_token, 0);
    uint64_t cycles = rdtsc() - start;
    for (uint32_t i = 0; i < used; i++)
        halts += mine[i].halts;
    printf("halt: IPI ring of %u, %u at once: %6u rounds, %7u halts, %u cycles a wake-up\n", size, used / size, rounds, halts,
           (uint32_t)div64(cycles, rounds * size));
    return rounds * used;
}

/* ---- self-IPI and timer, aimed at the instant of the STI; HLT pair ---- */

static uint32_t alarm_rounds;

static void wake_by_self(void *unused)
{
    (void)unused;
    uint32_t i = cpu_index(), before = mine[i].pings;
    this_cpu()->timer_taken = true;
    for (uint32_t round = 1; round <= alarm_rounds; round++) {
        if (round % 256 == 1)
            arm_watchdog();
        cli();
        ipi(i, VECTOR_PING);                            /* pending before HLT: it must not sleep */
        sti_hlt();
        halt_until(mine[i].pings - before >= round);
    }
    check(mine[i].pings - before == alarm_rounds, "CPU %u: %u self-IPIs instead of %u", i, mine[i].pings - before, alarm_rounds);
    timer_stop();
    this_cpu()->timer_taken = false;
}

static struct { uint32_t round; } timer_progress[MAX_CPUS];

static void wake_by_timer(void *unused)
{
    (void)unused;
    uint32_t i = cpu_index(), before = mine[i].alarms, random = 12345 + i;
    this_cpu()->timer_taken = true;                     /* so CPU 0 only watches: see guard() */
    for (uint32_t round = 1; round <= alarm_rounds; round++) {
        timer_progress[i].round = round;
        cli();
        timer_start(VECTOR_ALARM, 1 + random32(&random) % 20000);       /* up to 20 us */
        uint32_t dawdle = random32(&random) % 64;       /* so that it fires before, at, and after the HLT */
        while (dawdle--)
            compiler_barrier();
        mine[i].halts++;
        sti_hlt();
        halt_until(mine[i].alarms - before >= round);
    }
    check(mine[i].alarms - before == alarm_rounds, "CPU %u: %u timer interrupts instead of %u", i, mine[i].alarms - before,
          alarm_rounds);
    this_cpu()->timer_taken = false;
}

/* The timer is what is under test here, so it cannot be the watchdog too: CPU 0 stays awake and watches the others. */
static void guard_timers(void)
{
    cpus[0].timer_taken = true;
    for (uint32_t i = 1; i < ncpus; i++)
        run_on(i, wake_by_timer, 0);
    for (uint32_t i = 1; i < ncpus; i++) {
        char what[80];
        snprintf(what, sizeof what, "CPU %u, asleep until its timer fires: a timer wake-up was lost", i);
        spin_until(!cpus[i].job, what);
    }
    wake_by_timer(0);
}

/* ---- with interrupts off only an NMI ends a HLT ---- */

#ifdef MACHINE_PC
static volatile uint32_t deaf_round, deaf_awake, resent;

static void sleep_deaf(void *rounds)
{
    uint32_t i = cpu_index();
    for (uint32_t round = 1; round <= (uintptr_t)rounds; round++) {
        uint32_t nmis = mine[i].nmis, masked = mine[i].masked;
        cli();
        deaf_round = round;
        while (mine[i].nmis == nmis)                    /* an NMI before the HLT is a race by design: the sender repeats */
            hlt();
        check(mine[i].masked == masked, "CPU %u took an interrupt with IF clear", i);
        sti();
        spin_until(mine[i].masked != masked, "the interrupt that was pending through a deaf HLT");
        deaf_awake = round;
    }
}

static void wake_by_nmi(uint32_t rounds)
{
    run_on(1, sleep_deaf, (void *)(uintptr_t)rounds);
    for (uint32_t round = 1; round <= rounds; round++) {
        spin_until(deaf_round == round, "CPU 1 to go to sleep");
        delay_us(20);
        ipi(1, VECTOR_MASKED);
        delay_us(20);
        check(deaf_awake != round, "CPU 1: an ordinary interrupt ended HLT with IF clear");
        uint64_t give_up = rdtsc() + us_to_tsc(1000000) * wait_seconds;
        uint32_t nmis = mine[1].nmis;
        while (deaf_awake != round) {
            if (mine[1].nmis == nmis) {
                ipi_nmi(1);
                resent++;
            }
            uint64_t patience = rdtsc() + us_to_tsc(20000);
            while (deaf_awake != round && rdtsc() < patience)
                pause();
            check(rdtsc() < give_up, "CPU 1: no NMI ended HLT with IF clear (round %u)", round);
        }
    }
    wait_done(1);
    printf("halt: NMI ends HLT with IF clear, a masked interrupt does not: %u rounds, %u NMIs\n", rounds, resent);
}
#else
static void wake_by_nmi(uint32_t rounds)
{
    (void)rounds, (void)handle_masked, (void)handle_nmi;
    printf("halt: this machine has no NMIs, and its HALT always lets interrupts in: deaf sleep skipped\n");
}
#endif

void guest_main(void)
{
    on_vector(VECTOR_PING, handle_ping);
    on_vector(VECTOR_ALARM, handle_alarm);
    on_vector(VECTOR_MASKED, handle_masked);
    on_vector(VECTOR_WATCHDOG, handle_watchdog);
    on_vector(2, handle_nmi);
    uint32_t rounds = option_number("rounds", 10000) * scale, wakeups = 0;

    alarm_rounds = rounds;
    run_on_all(wake_by_self, 0);
    wakeups += rounds * ncpus;
    printf("halt: self-IPI pending before HLT: %u rounds on each CPU\n", rounds);

    guard_timers();
    wakeups += rounds * ncpus;
    printf("halt: timer around the STI; HLT instant: %u rounds on each CPU\n", rounds);

    if (ncpus == 1)
        pass("%u wake-ups, none lost; 1 CPU, so no IPI from another", wakeups);
    wake_by_nmi(100 * scale);
    wakeups += run_rings(2, rounds);
    if (ncpus > 2)
        wakeups += run_rings(ncpus, rounds / 2);
    pass("%u wake-ups, none lost", wakeups);
}
