/* demo: shows in a few seconds that the CPUs of this guest really run at the same time, on one memory, correctly. */
#include "litmus.h"

const char guest_name[] = "demo";

static struct barrier all;

/* ---- 1 ---- */

static void hello(void *unused)
{
    (void)unused;
    for (uint32_t turn = 0; turn < ncpus; turn++) {     /* in order, for the eye */
        if (turn == cpu_index())
            printf("     CPU %u  hello! (%s %u, stack at %p%s%s)\n", turn, cpu_id_name, cpu_id(), __builtin_frame_address(0),
                   turn ? "" : "; this one woke the others with ", turn ? "" : cpu_waking);
        barrier(&all, ncpus);
    }
}

/* ---- 2 ---- */

static volatile uint32_t counter __attribute__((aligned(64)));
static uint32_t additions;

static void count_locked(void *unused)
{
    (void)unused;
    barrier(&all, ncpus);
    for (uint32_t i = 0; i < additions; i++)
        asm volatile("lock incl %0" : "+m"(counter) : : "cc");
}

static void count_plain(void *unused)
{
    (void)unused;
    barrier(&all, ncpus);
    for (uint32_t i = 0; i < additions; i++)
        asm volatile("incl %0" : "+m"(counter) : : "cc");
}

static uint32_t count(job_t job)
{
    counter = 0;
    run_on_all(job, 0);
    return counter;
}

/* ---- 3 ---- */

enum { VECTOR_TOKEN = 0x41 };
static volatile uint32_t tokens[MAX_CPUS];
static uint32_t laps;

static void handle_token(struct trap *t)
{
    (void)t;
    uint32_t me = cpu_index(), next = (me + 1) % ncpus;
    tokens[me]++;
    irq_done();
    if (me != 0)
        ipi(next, VECTOR_TOKEN);                        /* straight from the handler: the others never notice */
    else
        wake(0);
}

/* ---- 5 ---- */

static struct { uint64_t steps; volatile uint64_t word; } __attribute__((aligned(64))) work_of[MAX_CPUS];
static uint32_t work_ms;
static struct barrier workers;
static uint32_t worker_count;

static void work(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    uint64_t steps = 0;
    barrier(&workers, worker_count);
    uint64_t end = rdtsc() + (uint64_t)work_ms * tsc_khz;
    while (rdtsc() < end) {
        uint32_t n = 20000;                             /* load, add, store, branch on a word of its own */
        asm volatile("1: addl $1, %1; decl %0; jnz 1b" : "+r"(n), "+m"(*(volatile uint32_t *)&work_of[me].word) : : "cc");
        steps += 20000;
    }
    work_of[me].steps = steps;
}

static void bar(char *out, uint32_t part, uint32_t whole)
{
    uint32_t n = whole ? (uint32_t)mul_div(part, 30, whole) : 0;
    for (uint32_t i = 0; i < 30; i++)
        out[i] = i < n ? '#' : '.';
    out[30] = 0;
}

static uint32_t per_second(uint64_t steps) { return (uint32_t)div64(div64(steps * 10, work_ms), 1000); }  /* tenths of a million */

void guest_main(void)
{
    uint64_t began = rdtsc();
    printf("\n  One guest, one memory, %u CPU%s: each runs its own instructions while the others run theirs.\n", ncpus, ncpus == 1 ? "" : "s");

    printf("\n  1. Everybody is here\n");
    run_on_all(hello, 0);

    additions = 300000 / (ncpus > 2 ? ncpus / 2 : 1) * scale;
    uint32_t expected = additions * ncpus;
    printf("\n  2. One counter, and %u CPU%s adding to it %u times each\n", ncpus, ncpus == 1 ? "" : "s", additions);
    uint32_t locked = count(count_locked);
    printf("     lock inc   %8u of %8u   %s\n", locked, expected, locked == expected ? "not one addition lost" : "LOST SOME");
    uint32_t plain = count(count_plain);
    if (plain < expected)
        printf("     inc        %8u of %8u   %u lost: two CPUs were inside the same instruction. That is\n"
               "                                       real parallelism, and why the LOCK prefix exists\n", plain, expected, expected - plain);
    else
        printf("     inc        %8u of %8u   none lost this time%s\n", plain, expected, ncpus == 1 ? " (there is nobody to lose to)" : "");
    check(locked == expected, "lock inc lost %u of %u additions", expected - locked, expected);
    check(plain <= expected, "inc counted more than was added");

    if (ncpus > 1) {
        laps = 2000 / ncpus * scale;
        on_vector(VECTOR_TOKEN, handle_token);
        printf("\n  3. An interrupt travels round all CPUs, %u laps\n", laps);
        uint64_t start = rdtsc();
        for (uint32_t lap = 1; lap <= laps; lap++) {
            ipi(1, VECTOR_TOKEN);
            sleep_until(tokens[0] == lap, "the interrupt to come back to CPU 0");
        }
        uint32_t ns = (uint32_t)div64(mul_div(rdtsc() - start, 1000000, tsc_khz), laps * ncpus);
        for (uint32_t i = 0; i < ncpus; i++)
            check(tokens[i] == laps, "CPU %u saw %u interrupts in %u laps", i, tokens[i], laps);
        printf("     %u interrupts sent, %u received, %u.%u us from one CPU to the next (sleeping ones woken)\n", laps * ncpus, laps * ncpus,
               ns / 1000, ns / 100 % 10);

        printf("\n  4. Who sees what first? CPU 0: x=1, then reads y.  CPU 1: y=1, then reads x.  Read so far:\n");
        static const char *const names[] = { "sb", "sb+mfence" };
        static const char *const labels[] = { "as written ", "with mfence" };
        printf("                     0 and 0    0 and 1    1 and 0    1 and 1\n");
        for (uint32_t i = 0; i < 2; i++) {
            static struct litmus_result r;
            const struct litmus *t = litmus_find(names[i]);
            litmus_run(t, 0, 400000 * scale, 700 * scale, &r);
            printf("     %s %10u %10u %10u %10u   %s\n", labels[i], r.histogram[0], r.histogram[1], r.histogram[3], r.histogram[4],
                   i ? r.marked ? "WRONG" : "0 and 0 is forbidden, and never seen"
                     : r.marked ? "0 and 0: store buffers at work, as on real x86" : "0 and 0 is allowed, not seen this time");
            check(i == 0 || r.marked == 0, "mfence did not order a store before a load (%u times)", r.marked);
        }
    } else
        printf("\n  3., 4. Interrupts between CPUs and memory ordering need a second CPU: try --vcpus 2\n");

    printf("\n  5. Speed: additions to memory, millions a second\n");
    static uint32_t alone[MAX_CPUS], together[MAX_CPUS];
    uint32_t best = 1, sum = 0, sum_alone = 0;
    work_ms = ncpus > 4 ? 50 : 100;
    worker_count = 1;
    for (uint32_t i = 0; i < ncpus; i++) {
        if (i == 0)
            work(0);
        else {
            run_on(i, work, 0);
            wait_done(i);
        }
        alone[i] = per_second(work_of[i].steps);
    }
    worker_count = ncpus;
    work_ms = 400;
    run_on_all(work, 0);
    for (uint32_t i = 0; i < ncpus; i++) {
        together[i] = per_second(work_of[i].steps);
        sum += together[i];
        sum_alone += alone[i];
        best = alone[i] > best ? alone[i] : best;
        best = together[i] > best ? together[i] : best;
    }
    for (uint32_t i = 0; i < ncpus; i++) {
        char text[31];
        bar(text, together[i], best);
        printf("     CPU %u  alone %5u.%u   all together %5u.%u  %s\n", i, alone[i] / 10, alone[i] % 10, together[i] / 10, together[i] % 10, text);
    }
    uint32_t mean = sum_alone / ncpus ? sum_alone / ncpus : 1, factor = (uint32_t)mul_div(sum, 100, mean);
    printf("     all together %u.%u: %u.%02u times one CPU%s\n\n", sum / 10, sum % 10, factor / 100, factor % 100,
           factor + 30 < ncpus * 100 ? " (the host seems to have fewer cores free than the guest has CPUs)" : "");
    uint32_t ms = tsc_to_us(rdtsc() - began) / 1000;
    pass("%u CPU%s, %u.%u s", ncpus, ncpus == 1 ? "" : "s", ms / 1000, ms / 100 % 10);
}
