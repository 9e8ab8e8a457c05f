/* The clock: never early, soon after, replaced, stopped, each CPU its own; the timestamps; the TSC. */
#include "abi.h"

static volatile uint32_t fired;
static volatile uint64_t fired_at;
static void handle(struct trap *t)
{
    (void)t;
    fired_at = rdtsc();
    fired++;
}

static void begin(void)
{
    cli();
    this_cpu()->timer_taken = true;
    timer_stop();
    on_vector(VECTOR_IRQ0, handle);
    this_cpu()->m.raw_irqs = true;
    sti();
    delay_us(500);                                      /* what was on its way is here now */
    fired = 0;
}

static void finish(void)
{
    hypercall1(SET_CLOCKEVENT, 0);
    this_cpu()->m.raw_irqs = false;
    on_vector(VECTOR_IRQ0, 0);
    this_cpu()->timer_taken = false;
}

static void wait_for_one(uint32_t before)
{
    spin_until(fired != before, "the clock");
    check(fired == before + 1, "the clock came %u times", fired - before);
}

static void one_shot(void)
{
    static const uint32_t times[] = { 1, 100, 1000, 10000, 100000, 1000000, 3000000, 10000000, 30000000 };
    uint32_t worst = 0;
    begin();
    for (uint32_t round = 0; round < 5; round++)
        for (uint32_t i = 0; i < array_size(times); i++) {
            uint32_t before = fired;
            uint64_t start = rdtsc();
            hypercall1(SET_CLOCKEVENT, times[i]);
            wait_for_one(before);
            uint64_t ns = div64((fired_at - start) * 1000, tsc_khz / 1000);
            check(ns + ns / 100 + 2000 >= times[i], "%u ns: fired after %u ns", times[i], (uint32_t)ns);
            uint32_t late = (uint32_t)div64(ns > times[i] ? ns - times[i] : 0, 1000);
            worst = late > worst ? late : worst;
            check(late < 2000000, "%u ns: fired %u us late", times[i], late);
        }
    delay_us(2000);
    check(fired == 5 * array_size(times), "the clock is one-shot, and fired %u times instead of %u", fired, (uint32_t)(5 * array_size(times)));
    printf("abi: clock: none early, %u us late at most\n", worst);
    finish();
}

static void replaced(void)
{
    begin();
    hypercall1(SET_CLOCKEVENT, 4000000000u);            /* replaced by a sooner one */
    uint64_t start = rdtsc();
    hypercall1(SET_CLOCKEVENT, 1000000);
    wait_for_one(0);
    check(tsc_to_us(fired_at - start) < 2000000, "the sooner time did not replace the later one");
    hypercall1(SET_CLOCKEVENT, 2000000);                /* and by a later one */
    start = rdtsc();
    hypercall1(SET_CLOCKEVENT, 20000000);
    wait_for_one(1);
    check(tsc_to_us(fired_at - start) > 19500, "the later time did not replace the sooner one: %u us", tsc_to_us(fired_at - start));
    hypercall1(SET_CLOCKEVENT, 3000000);
    hypercall1(SET_CLOCKEVENT, 0);
    delay_us(10000);
    check(fired == 2, "a clock that was stopped fired");
    finish();
}

/* The same span in the Host's wall clock and in TSC cycles. */
static void timestamps(void)
{
    struct lguest_data *d = my_data();
    begin();
    uint64_t wall[2], tsc[2];
    for (uint32_t i = 0; i < 2; i++) {
        if (i)
            delay_us(200000);
        hypercall1(SET_CLOCKEVENT, 1000);
        wait_for_one(i);
        tsc[i] = fired_at;
        wall[i] = d->seconds * 1000000000ull + d->nanoseconds;
        check(d->nanoseconds < 1000000000, "nanoseconds: %u", d->nanoseconds);
    }
    uint32_t by_wall = (uint32_t)div64(wall[1] - wall[0], 1000), by_tsc = tsc_to_us(tsc[1] - tsc[0]);
    check(by_wall < by_tsc + by_tsc / 5 && by_tsc < by_wall + by_wall / 5, "%u us by the wall clock, %u us by the TSC", by_wall, by_tsc);
    finish();
}

/* Everybody's at the same time, each with another one. */
static volatile uint32_t alarms[MAX_CPUS];
static void handle_alarm(struct trap *t) { (void)t; alarms[cpu_index()]++; irq_done(); }

static void own_clock(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    this_cpu()->timer_taken = true;
    for (uint32_t i = 1; i <= 50; i++) {
        uint64_t start = rdtsc();
        uint32_t us = 200 + 100 * me;
        timer_start(0x61, us * 1000);
        if (i & 1)
            spin_until(alarms[me] == i, "its clock");
        else
            while (alarms[me] < i) {
                cli();
                if (alarms[me] < i)
                    sti_hlt();
                sti();
            }
        check(alarms[me] == i && tsc_to_us(rdtsc() - start) + 5 >= us, "CPU %u: alarm %u after %u us instead of %u", me, alarms[me],
              tsc_to_us(rdtsc() - start), us);
    }
    alarms[me] = 0;
    this_cpu()->timer_taken = false;
}

static void each(void)
{
    on_vector(0x61, handle_alarm);
    run_on_all(own_clock, 0);
}

const struct subject clock_subjects[] = {
    { "clock", one_shot, ANY }, { "clock-replaced", replaced, ANY }, { "clock-stamps", timestamps, ANY }, { "clock-each", each, ANY },
    { 0, 0, 0 },
};
