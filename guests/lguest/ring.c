/* The asynchronous ring: 64 slots, filled in order, done in order at the next hypercall and not before. */
#include "abi.h"

/* Every call in here sets the limit of one descriptor, which LSL shows without leaving the Guest. */
enum { SLOT = 20, SELECTOR = SLOT << 3 | 1 };
static uint32_t cursor;                                 /* where the Host goes on: it moves only with us */

static void put(uint32_t slot, uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    struct lguest_data *data = my_data();
    const uint32_t words[5] = { number, a, b, c, d };
    for (uint32_t i = 0; i < 5; i++)
        data->calls[slot][i] = words[i];
    compiler_barrier();
    data->status[slot] = 0;
}

static void put_limit(uint32_t slot, uint32_t limit)
{
    uint64_t d = segment(0, limit, 0xB2, 0x4);
    put(slot, LOAD_GDT_ENTRY, SLOT, (uint32_t)d, (uint32_t)(d >> 32), 0);
}

static void queue_limit(uint32_t limit)
{
    put_limit(cursor, limit);
    cursor = (cursor + 1) % RING_SLOTS;
}

static uint32_t limit(void)
{
    uint32_t v;
    check(limit_of(SELECTOR, &v), "descriptor %u is not ours to look at", SLOT);
    return v;
}

static void expect_limit(uint32_t wanted, const char *what) { check(limit() == wanted, "%s: the limit is %u instead of %u", what, limit(), wanted); }

static void expect_free(const char *what)
{
    for (uint32_t i = 0; i < RING_SLOTS; i++)
        check(my_data()->status[i] == SLOT_FREE, "%s: slot %u is not free", what, i);
}

SNIPPET(in_from_nowhere, "in $0x61, %al");
SNIPPET(undefined, "ud2");

static void lazy(void)
{
    timer_stop();
    sti();                                              /* so that it has no reason for a hypercall later on */
    gdt_set(SLOT, segment(0, 1, 0xB2, 0x4));
    queue_limit(1000);
    delay_us(3000);
    expect_limit(1, "a queued call, nothing since");
    struct run r = ring1(in_from_nowhere);
    run_to_trap(&r, END, 0, "IN");
    r = ring1(undefined);
    run_to_trap(&r, 6, 0, "UD2");
    uint32_t slot = (cursor + RING_SLOTS - 1) % RING_SLOTS;
    check(my_data()->status[slot] == 0, "a trap that is no hypercall made the Host look into the ring");
    expect_limit(1, "a queued call, two traps since");
    hypercall0(FLUSH_ASYNC);
    expect_limit(1000, "a queued call, and FLUSH_ASYNC");
    expect_free("FLUSH_ASYNC");
    queue_limit(1001);
    hypercall0(SEND_INTERRUPTS);                        /* any other does it, too */
    expect_limit(1001, "a queued call, and SEND_INTERRUPTS");
}

static void order(void)
{
    gdt_set(SLOT, segment(0, 1, 0xB2, 0x4));
    for (uint32_t n = 1; n <= RING_SLOTS; n++) {        /* each number of slots once: the cursor comes by everywhere */
        for (uint32_t i = 0; i < n; i++)
            queue_limit(n * 100 + i);
        expect_limit(n == 1 ? limit() : (n - 1) * 100 + n - 2, "queued");
        hypercall0(FLUSH_ASYNC);
        expect_limit(n * 100 + n - 1, "several slots");
        expect_free("several slots");
    }
}

/* What Linux does when the ring is full: the call itself, which drains the ring before it is done. */
static void full(void)
{
    for (uint32_t i = 0; i < RING_SLOTS; i++)
        queue_limit(i);
    check(my_data()->status[cursor] == 0, "the ring is not full after %u calls", RING_SLOTS);
    gdt_set(SLOT, segment(0, 5000, 0xB2, 0x4));
    expect_limit(5000, "a direct call behind a full ring");
    expect_free("a full ring");
}

/* A slot that is filled behind an empty one waits until that one is filled. */
static void gap(void)
{
    gdt_set(SLOT, segment(0, 7, 0xB2, 0x4));
    put_limit((cursor + 1) % RING_SLOTS, 70);
    hypercall0(FLUSH_ASYNC);
    expect_limit(7, "a slot behind an empty one");
    put_limit(cursor, 60);
    hypercall0(FLUSH_ASYNC);
    expect_limit(70, "a gap that was filled");
    cursor = (cursor + 2) % RING_SLOTS;
    expect_free("a gap that was filled");
}

/* NOTIFY in the ring: served in its turn; what follows it and the direct call come afterwards, all before it returns. */
static void notify_within(void)
{
    static const char text[] = "abi: NOTIFY out of the ring\n";
    queue_limit(11);
    put(cursor, NOTIFY, pa(text), 0, 0, 0);
    cursor = (cursor + 1) % RING_SLOTS;
    queue_limit(12);
    gdt_set(SLOT + 1, segment(0, 13, 0xB2, 0x4));
    expect_limit(12, "behind a NOTIFY");
    uint32_t other;
    check(limit_of((SLOT + 1) << 3 | 1, &other) && other == 13, "the direct call behind a NOTIFY in the ring is missing");
    expect_free("a NOTIFY in the ring");
}

/* The ones that Linux queues, with arguments it could have. */
static void every_kind(void)
{
    static uint32_t tls[6] __attribute__((aligned(8)));
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t d = segment(0, 100 + i, 0xF2, 0x4);
        memcpy(&tls[2 * i], &d, 8);
    }
    const uint32_t calls[][5] = {
        { TS, 1 }, { TS, 0 }, { LOAD_TLS, pa(tls), 0 }, { SET_PTE, pa(page_root), 0x400000, 0, 0 }, { FLUSH_TLB, 0 },
        { SET_STACK, SEL_KDATA, (uint32_t)(uintptr_t)this_cpu()->stack_top - STACK_SIZE / 2, 2 },
    };
    for (uint32_t i = 0; i < array_size(calls); i++) {
        put(cursor, calls[i][0], calls[i][1], calls[i][2], calls[i][3], calls[i][4]);
        cursor = (cursor + 1) % RING_SLOTS;
    }
    hypercall0(FLUSH_ASYNC);
    uint32_t l;
    check(limit_of(0x33, &l) && l == 100 && limit_of(0x43, &l) && l == 102, "LOAD_TLS from the ring: the limit is %u", l);
    expect_free("calls of all kinds");
}

/* The other CPUs' rings are theirs. */
static void on_another(void *unused)
{
    (void)unused;
    struct lguest_data *d = my_data();
    put(0, FLUSH_ASYNC, 0, 0, 0, 0);
    delay_us(1000);
    check(d->status[0] == 0, "somebody else's hypercall drained this CPU's ring");
    hypercall0(FLUSH_ASYNC);
    check(d->status[0] == SLOT_FREE, "CPU %u: its ring is not drained", cpu_index());
    for (uint32_t i = 1; i < RING_SLOTS; i++)           /* once round, so that the next one begins at 0 again */
        put(i, FLUSH_ASYNC, 0, 0, 0, 0);
    hypercall0(FLUSH_ASYNC);
}

static void own_rings(void)
{
    for (uint32_t i = 1; i < ncpus; i++) {
        run_on(i, on_another, 0);
        while (cpus[i].job)
            hypercall0(FLUSH_ASYNC);
    }
}

const struct subject ring_subjects[] = {
    { "ring-lazy", lazy, ANY }, { "ring-order", order, ANY }, { "ring-full", full, ANY }, { "ring-gap", gap, ANY },
    { "ring-notify", notify_within, ANY }, { "ring-kinds", every_kind, ANY }, { "ring-own", own_rings, ANY }, { 0, 0, 0 },
};
