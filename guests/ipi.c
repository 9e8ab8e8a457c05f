/* ipi: every kind of IPI arrives exactly once, at the right CPUs, in the order that TPR, ISR and EOI ask for. */
#include "guest.h"

const char guest_name[] = "ipi";

enum { VECTOR_FROM = 0x60 };                            /* + index of the sender, so that each pair has its own counter */

/* got[receiver].from[sender]: written by the receiver's handler only. want: by the sender only. */
static struct { volatile uint32_t from[MAX_CPUS], nmis; } __attribute__((aligned(64))) got[MAX_CPUS];
static struct { uint32_t to[MAX_CPUS]; } __attribute__((aligned(64))) want[MAX_CPUS];

static void handle_from(struct trap *t)
{
    uint32_t sender = (uint32_t)t->vector - VECTOR_FROM;
    got[cpu_index()].from[sender]++;
    irq_done();
    if (sender != cpu_index())
        wake(sender);
}

/* A second IPI with the same vector may merge with the first in IRR, so wait for each before sending the next. */
static void await(uint32_t targets)
{
    uint32_t me = cpu_index();
    for (uint32_t i = 0; i < ncpus; i++)
        if (targets >> i & 1)
            want[me].to[i]++;
    for (uint32_t i = 0; i < ncpus; i++)
        if (targets >> i & 1)
            sleep_until(got[i].from[me] == want[me].to[i], "an IPI to arrive (or it arrived twice)");
}

static uint32_t everybody(void) { return (uint32_t)((1ull << ncpus) - 1); }

static uint32_t rounds;
static uint64_t last_start;                             /* no new rounds after that: a loaded host must not make this endless */

static bool go_on(uint32_t round) { return round < rounds && (round < 100 || rdtsc() < last_start); }

static void send_physical(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), random = 77 + me;
    for (uint32_t r = 0; go_on(r); r++) {
        uint32_t target = random32(&random) % ncpus;
        ipi(target, VECTOR_FROM + me);
        await(1u << target);
    }
}

static void send_shorthands(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    for (uint32_t r = 0; go_on(r); r++) {
        ipi_self(VECTOR_FROM + me);
        await(1u << me);
        ipi_all(VECTOR_FROM + me);
        await(everybody());
        ipi_others(VECTOR_FROM + me);
        await(everybody() & ~(1u << me));
    }
}

static uint32_t count_all(const char *what)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < ncpus; i++)
        for (uint32_t s = 0; s < ncpus; s++) {
            check(got[i].from[s] == want[s].to[i], "%s: CPU %u got %u IPIs from CPU %u instead of %u", what, i, got[i].from[s], s,
                  want[s].to[i]);
            sum += got[i].from[s];
        }
    return sum;
}

static uint32_t phase(const char *what, job_t job)
{
    static uint32_t before;
    uint64_t start = rdtsc();
    last_start = start + (uint64_t)option_number("max_ms", 1500) * scale * tsc_khz;
    run_on_all(job, 0);
    delay_us(1000);                                     /* a stray one would show up about now */
    uint32_t sum = count_all(what), these = sum - before;
    before = sum;
    printf("ipi: %-34s %8u sent, each arrived once (%u us)\n", what, these, tsc_to_us(rdtsc() - start));
    return sum;
}

/* ---- what only a local APIC has: logical destinations, NMIs, priorities ---- */

#ifdef MACHINE_PC
static void send_logical(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), random = 99 + me, cpus_in_flat = ncpus < 8 ? ncpus : 8;
    for (uint32_t r = 0; go_on(r); r++) {
        uint32_t targets = 1 + random32(&random) % ((1u << cpus_in_flat) - 1);
        lapic_icr(targets, ICR_FIXED | ICR_LOGICAL | ICR_ASSERT | (VECTOR_FROM + me));
        await(targets);
    }
}

static uint32_t nmis_wanted[MAX_CPUS];
static void handle_nmi(struct trap *t) { (void)t; got[cpu_index()].nmis++; }

static void send_nmis(uint32_t count)
{
    uint64_t end = rdtsc() + (uint64_t)option_number("max_ms", 1500) * scale * tsc_khz;
    uint32_t r = 0;
    for (; r < count && (r < 20 || rdtsc() < end); r++) {
        bool shorthand = r & 1;
        uint32_t one = 1 + (r >> 1) % (ncpus - 1);
        for (uint32_t i = 1; i < ncpus; i++)
            nmis_wanted[i] += shorthand || i == one;
        if (shorthand)
            lapic_icr(0, ICR_OTHERS | ICR_NMI | ICR_ASSERT);
        else
            ipi_nmi(one);
        for (uint32_t i = 1; i < ncpus; i++)
            spin_until(got[i].nmis == nmis_wanted[i], "an NMI to arrive (or it arrived twice)");
    }
    delay_us(1000);
    for (uint32_t i = 0; i < ncpus; i++)
        check(got[i].nmis == nmis_wanted[i], "CPU %u got %u NMIs instead of %u", i, got[i].nmis, nmis_wanted[i]);
    printf("ipi: %-34s %8u sent\n", "NMI, to one and to all others", r);
}

/* ---- order and priority, on each CPU with self-IPIs ---- */

static struct { volatile uint32_t length; volatile uint8_t entry[16]; } trace[MAX_CPUS];
static volatile bool nest[MAX_CPUS];

static void note(uint32_t what)
{
    uint32_t i = cpu_index();
    if (trace[i].length < 16)
        trace[i].entry[trace[i].length] = (uint8_t)what;
    trace[i].length++;
}

static void self(uint32_t vector) { lapic_icr(0, ICR_SELF | ICR_ASSERT | vector); }

/* Vectors A1, B1, C1 (priority classes A < B < C). The handler of B1 can let others in: C1 must nest, A1 must wait. */
static void handle_priority(struct trap *t)
{
    uint32_t i = cpu_index(), v = (uint32_t)t->vector;
    note(v);
    check(lapic_bit(LAPIC_ISR, v), "CPU %u: vector %x is not in ISR while it is served", i, v);
    if (v == 0xB1 && nest[i]) {
        nest[i] = false;
        check((lapic_read(LAPIC_PPR) & 0xF0) == 0xB0, "CPU %u: PPR is %x in the handler of B1", i, lapic_read(LAPIC_PPR));
        self(0xA1);
        self(0xB1);                                     /* the same again: waits in IRR until EOI */
        self(0xB1);                                     /* and merges */
        sti();
        self(0xC1);
        spin_until(trace[i].length >= 3, "a higher vector to interrupt the handler of a lower one");
        delay_us(50);
        cli();
        check(lapic_bit(LAPIC_IRR, 0xA1) && lapic_bit(LAPIC_IRR, 0xB1), "CPU %u: IRR forgot a vector", i);
    }
    note(v + 1);                                        /* x2: leaving */
    lapic_eoi();
}

static void expect_trace(const char *what, const uint8_t *expected, uint32_t n)
{
    uint32_t i = cpu_index();
    spin_until(trace[i].length >= n, "interrupts that are no longer blocked");
    delay_us(20);
    bool same = trace[i].length == n;
    for (uint32_t k = 0; k < n && same; k++)
        same = trace[i].entry[k] == expected[k];
    char seen[64] = "";
    for (uint32_t k = 0, at = 0; k < trace[i].length && k < 16; k++)
        at += (uint32_t)snprintf(seen + at, sizeof seen - at, " %x", trace[i].entry[k]);
    check(same, "CPU %u: %s: the order was%s", i, what, seen);
    for (uint32_t r = 0; r < 8; r++)
        check(!lapic_read(LAPIC_ISR + 0x10 * r), "CPU %u: %s: ISR is not empty afterwards", i, what);
}

static void await_pending(uint32_t vector)
{
    spin_until(lapic_bit(LAPIC_IRR, vector), "a self-IPI to become pending in IRR");
}

static void priorities(void *unused)
{
    (void)unused;
    uint32_t i = cpu_index();
    for (uint32_t r = 0; r < 20 * scale; r++) {
        /* Several pending at once: the highest first. Three of the same: one. */
        trace[i].length = 0;
        cli();
        self(0xA1); self(0xC1); self(0xB1); self(0xA1); self(0xA1);
        await_pending(0xA1); await_pending(0xB1); await_pending(0xC1);
        sti();
        expect_trace("three pending", (const uint8_t[]){ 0xC1, 0xC2, 0xB1, 0xB2, 0xA1, 0xA2 }, 6);

        /* Nesting and the order of EOIs. */
        trace[i].length = 0;
        nest[i] = true;
        self(0xB1);
        expect_trace("nesting", (const uint8_t[]){ 0xB1, 0xC1, 0xC2, 0xB2, 0xB1, 0xB2, 0xA1, 0xA2 }, 8);

        /* TPR: class B and below wait, class C passes. */
        trace[i].length = 0;
        if (sizeof(reg_t) == 8 && r & 1) {
#ifdef __x86_64__
            asm volatile("mov %0, %%cr8" : : "r"(0xBul) : "memory");
            check(lapic_read(LAPIC_TPR) == 0xB0, "CPU %u: CR8 = B, but TPR is %x", i, lapic_read(LAPIC_TPR));
#endif
        } else
            lapic_write(LAPIC_TPR, 0xB0);
        check((lapic_read(LAPIC_PPR) & 0xF0) == 0xB0, "CPU %u: TPR is B0, but PPR is %x", i, lapic_read(LAPIC_PPR));
        self(0xA1); self(0xB1); self(0xC1);
        spin_until(trace[i].length >= 2, "a vector above TPR");
        delay_us(50);
        check(trace[i].length == 2 && trace[i].entry[0] == 0xC1, "CPU %u: a vector not above TPR was delivered", i);
        check(lapic_bit(LAPIC_IRR, 0xA1) && lapic_bit(LAPIC_IRR, 0xB1), "CPU %u: TPR made IRR forget a vector", i);
        lapic_write(LAPIC_TPR, 0xA0);
        spin_until(trace[i].length >= 4, "a vector above the lowered TPR");
        delay_us(20);
        check(trace[i].length == 4, "CPU %u: a vector not above the lowered TPR was delivered", i);
        lapic_write(LAPIC_TPR, 0);
        expect_trace("TPR", (const uint8_t[]){ 0xC1, 0xC2, 0xB1, 0xB2, 0xA1, 0xA2 }, 6);
    }
}
#endif

/* ---- what it costs ---- */

static void measure(uint32_t target)
{
    uint32_t me = cpu_index(), count = 2000, best = ~0u;
    cpus[target].timer_taken = true;                    /* nothing but the answer we wait for */
    uint64_t sum = 0, end = rdtsc() + (uint64_t)1000 * tsc_khz;
    uint32_t r = 0;
    for (; r < count && (r < 20 || rdtsc() < end); r++) {
        uint64_t start = rdtsc();
        ipi(target, VECTOR_FROM + me);
        want[me].to[target]++;
        spin_until(got[target].from[me] == want[me].to[target], "an IPI to arrive");
        uint64_t cost = rdtsc() - start;
        sum += cost;
        if (cost < best)
            best = (uint32_t)cost;
    }
    cpus[target].timer_taken = false;
    printf("ipi: CPU 0 to CPU %u and seen back: best %u cycles, mean %u\n", target, best, (uint32_t)div64(sum, r));
}

static volatile bool stay_awake;
static void keep_awake(void *unused) { (void)unused; while (stay_awake) pause(); }

void guest_main(void)
{
    for (uint32_t i = 0; i < MAX_CPUS; i++)
        on_vector(VECTOR_FROM + i, handle_from);
    rounds = option_number("rounds", ncpus > 2 ? 5000 : 20000) * scale;

#ifdef MACHINE_PC
    on_vector(VECTOR_NMI, handle_nmi);
    on_vector(0xA1, handle_priority);
    on_vector(0xB1, handle_priority);
    on_vector(0xC1, handle_priority);
    run_on_all(priorities, 0);
    printf("ipi: order, nesting, EOI, merging, TPR: as the SDM says, on each CPU\n");

    lapic_icr(0xEE, ICR_FIXED | ICR_ASSERT | VECTOR_FROM);      /* nobody has that ID: it must vanish */
    phase("physical", send_physical);
    phase("logical (flat), any set of CPUs", send_logical);
#else
    printf("ipi: this machine has no logical destinations, NMIs and priorities: skipped\n");
    phase("to one", send_physical);
#endif
    rounds /= 3;
    uint32_t sum = phase("self, all, all but self", send_shorthands);
    if (ncpus == 1) {
        measure(0);
        pass("%u IPIs; 1 CPU, so only to itself", sum);
    }
#ifdef MACHINE_PC
    send_nmis(500 * scale);
#endif
    measure(0);
    stay_awake = true;
    run_on(1, keep_awake, 0);
    measure(1);
    stay_awake = false;
    wait_done(1);
    pass("%u IPIs, none lost, none doubled", sum);
}
