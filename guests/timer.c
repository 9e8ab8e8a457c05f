/* timer: every armed timer fires exactly once and never early; periodic, TSC-deadline, masked, stopped, re-armed: what of
   this the machine has. */
#include "guest.h"

const char guest_name[] = "timer";

enum { VECTOR_TIMER = 0x41 };

static struct {
    volatile uint32_t fired;                            /* by the handler only */
    volatile uint64_t fired_at;
    uint32_t armed, ticks_per_ms, latest_us;
    uint64_t late_us;
    uint32_t random, periodic_ticks, periodic_most, refused;
} __attribute__((aligned(64))) of[MAX_CPUS];

static uint32_t rounds;
static uint64_t last_start;                             /* no new rounds after that: a loaded host must not make this endless */

static void handle_timer(struct trap *t)
{
    (void)t;
    uint32_t me = cpu_index();
    of[me].fired_at = rdtsc();                          /* first: lateness must not hide earliness */
    of[me].fired++;
    irq_done();
}

static void await_one(uint32_t before, bool asleep, const char *what)
{
    uint32_t me = cpu_index();
    if (asleep && me != 0) {                            /* CPU 0 never sleeps here: it is the one that can tell */
        cli();
        while (of[me].fired == before)
            sti_hlt(), cli();
        sti();
    } else
        spin_until(of[me].fired != before, what);
}

static void check_one(uint64_t armed_at, uint64_t due, uint32_t before, const char *what)
{
    uint32_t me = cpu_index();
    check(of[me].fired == before + 1, "CPU %u: %s fired %u times", me, what, of[me].fired - before);
    check(of[me].fired_at >= due, "CPU %u: %s fired %u us early, after %u us", me, what, tsc_to_us(due - of[me].fired_at),
          tsc_to_us(of[me].fired_at - armed_at));
    uint32_t late = tsc_to_us(of[me].fired_at - due);
    of[me].late_us += late;
    if (late > of[me].latest_us)
        of[me].latest_us = late;
}

#ifdef MACHINE_PC
/* A pair of readings, APIC count and TSC, that were taken together: tried until nothing came between. */
static uint64_t read_together(uint32_t *count)
{
    uint64_t best = ~0ull, at = 0;
    for (int i = 0; i < 20; i++) {
        uint64_t before = rdtsc();
        uint32_t c = lapic_read(LAPIC_TIMER_COUNT);
        uint64_t after = rdtsc();
        if (after - before < best) {
            best = after - before;
            at = before + best / 2;
            *count = c;
        }
    }
    return at;
}

/* The two clocks may come from different sources, so their ratio is measured, on each CPU. */
static void calibrate_here(void)
{
    uint32_t me = cpu_index(), c0 = 0, c1 = 0;
    lapic_timer(TIMER_ONESHOT | TIMER_MASKED, VECTOR_TIMER, 0xFFFFFFFF, DIVIDE_BY_1);
    uint64_t t0 = read_together(&c0);
    delay_us(30000);
    uint64_t t1 = read_together(&c1);
    of[me].ticks_per_ms = (uint32_t)div64((uint64_t)(c0 - c1) * tsc_khz, (uint32_t)(t1 - t0));
    check(of[me].ticks_per_ms >= 1000, "CPU %u: the APIC timer counts only %u times a ms", me, of[me].ticks_per_ms);
    lapic_timer(TIMER_ONESHOT | TIMER_MASKED, VECTOR_TIMER, 0, DIVIDE_BY_1);
}

/* ---- one-shot ---- */

static const struct { uint32_t divide, by; } dividers[] = { { DIVIDE_BY_1, 1 }, { DIVIDE_BY_2, 2 }, { DIVIDE_BY_16, 16 }, { DIVIDE_BY_128, 128 } };

static void one_shot(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), *random = &of[me].random;
    this_cpu()->timer_taken = true;
    *random = 555 + me;
    calibrate_here();
    for (uint32_t round = 0; round < rounds && (round < 100 || rdtsc() < last_start); round++) {
        uint32_t d = random32(random) % 4, us = random32(random) % 150, before = of[me].fired;
        uint32_t count = 1 + (uint32_t)mul_div(of[me].ticks_per_ms, us, 1000) / dividers[d].by;
        if (round % 8 == 0)                             /* replaced while it runs: only the second one counts */
            lapic_timer(TIMER_ONESHOT, VECTOR_TIMER, 0xFFFFFFFF, dividers[d].divide);
        else
            lapic_timer(TIMER_ONESHOT, VECTOR_TIMER, 0, dividers[d].divide);
        uint64_t armed_at = rdtsc();
        lapic_write(LAPIC_TIMER_INIT, count);
        of[me].armed++;
        await_one(before, round & 3, "its one-shot timer to fire");
        /* 0.5 % and 3 us for the difference of the clocks */
        uint64_t time = div64((uint64_t)count * dividers[d].by * tsc_khz, of[me].ticks_per_ms), slack = time / 200 + us_to_tsc(3);
        check_one(armed_at, armed_at + (time > slack ? time - slack : 0), before, "a one-shot timer");
        if (round % 16 == 0) {
            delay_us(50);
            check(of[me].fired == before + 1, "CPU %u: a one-shot timer fired again", me);
            check(lapic_read(LAPIC_TIMER_COUNT) == 0, "CPU %u: a one-shot timer that has fired still counts", me);
        }
        if (round % 64 == 1) {                          /* stopped in time: never */
            lapic_timer(TIMER_ONESHOT, VECTOR_TIMER, of[me].ticks_per_ms / 128 * 30000, DIVIDE_BY_128);
            lapic_write(LAPIC_TIMER_INIT, 0);
            lapic_timer(TIMER_ONESHOT | TIMER_MASKED, VECTOR_TIMER, of[me].ticks_per_ms / 20 + 1, DIVIDE_BY_1);     /* masked: never */
            delay_us(150);
            spin_until(lapic_read(LAPIC_TIMER_COUNT) == 0, "a masked timer to count down");
            lapic_write(LAPIC_LVT_TIMER, TIMER_ONESHOT | VECTOR_TIMER);     /* unmasking brings nothing back */
            delay_us(50);
            check(of[me].fired == before + 1, "CPU %u: a timer that was stopped or masked fired", me);
            of[me].refused += 2;
        }
    }
    this_cpu()->timer_taken = false;
}

/* ---- periodic ---- */

static void periodic(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), before = of[me].fired, period_us = 200;
    this_cpu()->timer_taken = true;
    uint64_t start = rdtsc();
    lapic_timer(TIMER_PERIODIC, VECTOR_TIMER, of[me].ticks_per_ms * period_us / 1000, DIVIDE_BY_1);
    uint64_t end = start + us_to_tsc(50000 * (scale > 100 ? 100 : scale));
    while (rdtsc() < end) {
        check(lapic_read(LAPIC_TIMER_COUNT) <= of[me].ticks_per_ms * period_us / 1000, "CPU %u: the count is above its start", me);
        pause();
    }
    struct wait w = { 0, 0, "three ticks of its periodic timer" };
    while (of[me].fired - before < 3)
        wait_spin(&w, false);
    lapic_timer(TIMER_MASKED, VECTOR_TIMER, 0, DIVIDE_BY_1);
    delay_us(20);                                       /* what was already pending comes now */
    uint32_t ticks = of[me].fired - before;
    uint64_t elapsed_us = tsc_to_us(rdtsc() - start), most = div64(elapsed_us + elapsed_us / 200, period_us) + 1;
    check(ticks <= most, "CPU %u: %u periodic ticks in %u us, at most %u were due", me, ticks, (uint32_t)elapsed_us, (uint32_t)most);
    delay_us(1000);
    check(of[me].fired - before == ticks, "CPU %u: a stopped periodic timer ticked on", me);
    of[me].periodic_ticks = ticks;
    of[me].periodic_most = (uint32_t)most;
    of[me].armed += ticks;
    this_cpu()->timer_taken = false;
}

/* ---- TSC deadline ---- */

static void deadline(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), *random = &of[me].random;
    this_cpu()->timer_taken = true;
    lapic_write(LAPIC_LVT_TIMER, TIMER_TSC_DEADLINE | VECTOR_TIMER);
    full_fence();                                       /* SDM 10.5.4.1: the LVT write must be there before the WRMSR */
    for (uint32_t round = 0; round < rounds && (round < 100 || rdtsc() < last_start); round++) {
        uint32_t before = of[me].fired;
        uint64_t now = rdtsc(), due = now + us_to_tsc(random32(random) % 150);
        if (round % 32 == 5)
            due = now - us_to_tsc(1000);                /* past: at once */
        if (round % 8 == 0)
            wrmsr(MSR_TSC_DEADLINE, now + us_to_tsc(30000000));      /* replaced */
        wrmsr(MSR_TSC_DEADLINE, due);
        of[me].armed++;
        await_one(before, round & 3, "its TSC deadline");
        check_one(now, due, before, "a TSC deadline");
        check(rdmsr(MSR_TSC_DEADLINE) == 0, "CPU %u: IA32_TSC_DEADLINE is not 0 after it fired", me);
        if (round % 64 == 1) {
            wrmsr(MSR_TSC_DEADLINE, rdtsc() + us_to_tsc(100));
            wrmsr(MSR_TSC_DEADLINE, 0);                 /* disarmed, if in time: else it has fired already */
            delay_us(5);
            uint32_t already = of[me].fired;
            delay_us(150);
            check(of[me].fired == already, "CPU %u: a disarmed TSC deadline fired", me);
            of[me].armed += already - before - 1;
            lapic_write(LAPIC_TIMER_INIT, 1000);        /* ignored in this mode */
            delay_us(20);
            check(of[me].fired == already && lapic_read(LAPIC_TIMER_COUNT) == 0, "CPU %u: the initial count acted in TSC-deadline mode", me);
            of[me].refused += 2;
        }
    }
    lapic_timer(TIMER_ONESHOT | TIMER_MASKED, VECTOR_TIMER, 0, DIVIDE_BY_1);
    this_cpu()->timer_taken = false;
}
#else

/* ---- a machine with one-shot timers in nanoseconds ---- */

static void one_shot(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), *random = &of[me].random;
    this_cpu()->timer_taken = true;
    *random = 555 + me;
    for (uint32_t round = 0; round < rounds && (round < 100 || rdtsc() < last_start); round++) {
        uint32_t ns = 1 + random32(random) % 150000, before = of[me].fired;
        if (round % 8 == 0)                             /* replaced while it runs: only the second one counts */
            timer_start(VECTOR_TIMER, 4000000000u);
        uint64_t armed_at = rdtsc();
        timer_start(VECTOR_TIMER, ns);
        of[me].armed++;
        await_one(before, round & 3, "its one-shot timer to fire");
        uint64_t time = div64((uint64_t)ns * tsc_khz, 1000000), slack = time / 200 + us_to_tsc(3);      /* two clocks */
        check_one(armed_at, armed_at + (time > slack ? time - slack : 0), before, "a one-shot timer");
        if (round % 16 == 0) {
            delay_us(50);
            check(of[me].fired == before + 1, "CPU %u: a one-shot timer fired again", me);
        }
        if (round % 64 == 1) {                          /* stopped in time: never */
            timer_start(VECTOR_TIMER, 30000000);
            timer_stop();
            delay_us(150);
            check(of[me].fired == before + 1, "CPU %u: a timer that was stopped fired", me);
            of[me].refused++;
        }
    }
    this_cpu()->timer_taken = false;
}
#endif

static void report(const char *what)
{
    uint32_t armed = 0, fired = 0, latest = 0, refused = 0;
    uint64_t late = 0;
    for (uint32_t i = 0; i < ncpus; i++) {
        check(of[i].armed == of[i].fired, "CPU %u: %u timers armed, %u fired", i, of[i].armed, of[i].fired);
        armed += of[i].armed;
        fired += of[i].fired;
        late += of[i].late_us;
        refused += of[i].refused;
        latest = of[i].latest_us > latest ? of[i].latest_us : latest;
        of[i].late_us = of[i].latest_us = of[i].refused = 0;
    }
    static uint32_t before;
    uint32_t these = fired - before;
    before = fired;
    printf("timer: %-12s %6u armed, each fired once, none early; %u stopped or masked, none fired; late by %u us in the mean, %u at most\n",
           what, these, refused, (uint32_t)div64(late, these ? these : 1), latest);
}

void guest_main(void)
{
    on_vector(VECTOR_TIMER, handle_timer);
    rounds = option_number("rounds", 3000) * scale;
    uint32_t max_ms = option_number("max_ms", 2000) * scale;
    last_start = rdtsc() + (uint64_t)max_ms * tsc_khz;
    run_on_all(one_shot, 0);
    report("one-shot");

#ifdef MACHINE_PC
    run_on_all(periodic, 0);
    for (uint32_t i = 0; i < ncpus; i++)
        printf("timer: periodic     CPU %u: %u ticks of at most %u\n", i, of[i].periodic_ticks, of[i].periodic_most);
    report("periodic");

    if (has_tsc_deadline()) {
        last_start = rdtsc() + (uint64_t)max_ms * tsc_khz;
        run_on_all(deadline, 0);
        report("TSC-deadline");
    } else
        printf("timer: TSC-deadline not offered by CPUID: skipped\n");
    const char *without = has_tsc_deadline() ? "" : "; no TSC-deadline here";
#else
    const char *without = "; no periodic, no TSC-deadline here";
    printf("timer: this machine's timers are one-shot only: periodic and TSC-deadline skipped\n");
#endif
    uint32_t fired = 0;
    for (uint32_t i = 0; i < ncpus; i++)
        fired += of[i].fired;
    pass("%u timers on %u CPU%s, none lost, none doubled, none early%s", fired, ncpus, ncpus == 1 ? "" : "s",
         without);
}
