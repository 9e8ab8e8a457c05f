/* Hypercalls: none returns anything or touches a register; what LGUEST_INIT left; texts by NOTIFY. */
#include "abi.h"

SNIPPET(one_call, "int $0x1f");

static void registers(void)
{
    static const uint32_t harmless[] = { FLUSH_ASYNC, SEND_INTERRUPTS, TS, NOTIFY, FLUSH_TLB, SET_PGD, SET_PTE };
    for (uint32_t i = 0; i < array_size(harmless); i++) {
        struct run r = ring1(one_call);
        r.t.ax = harmless[i];
        r.t.bx = 0;                                     /* TS 0, NOTIFY nothing, FLUSH_TLB the user's, SET_… of an unknown directory */
        r.t.cx = harmless[i] == SET_PGD ? 3 : 0x01020304;
        r.t.dx = 0x55667788;
        r.t.si = 0x99AABBCC;
        r.t.di = 0xDDEEFF00;
        r.t.bp = 0x12345678;
        r.t.flags = 0x202 | 0x8D5;                      /* all of them */
        struct run before = r;
        run_to_trap(&r, END, 0, "a hypercall");
        check(r.t.ax == before.t.ax && r.t.bx == before.t.bx && r.t.cx == before.t.cx && r.t.dx == before.t.dx && r.t.si == before.t.si
              && r.t.di == before.t.di && r.t.bp == before.t.bp, "hypercall %u changed a register", harmless[i]);
        check(r.t.flags == before.t.flags, "hypercall %u: flags %lx instead of %lx", harmless[i], r.t.flags, before.t.flags);
        check(r.t.ds == SEL_KDATA && r.t.es == SEL_KDATA && r.t.fs == SEL_PERCPU, "hypercall %u changed a segment", harmless[i]);
        check(r.t.ip == before.t.ip + 4, "hypercall %u: came back to %lx", harmless[i], r.t.ip);
    }
}

static void init(void)
{
    struct lguest_data *d = my_data();
    check(d->reserve_mem == 0x400000, "reserve_mem is %x", d->reserve_mem);
    check(!d->tsc_khz || (d->tsc_khz > 100000 && d->tsc_khz < 20000000), "tsc_khz is %u", d->tsc_khz);
    check(d->seconds > 1500000000 && d->nanoseconds < 1000000000, "the time is %u.%09u", d->seconds, d->nanoseconds);
    for (uint32_t i = 0; i < RING_SLOTS; i++)
        check(d->status[i] == SLOT_FREE, "ring slot %u has the status %x", i, d->status[i]);
}

static void notify(void)
{
    static const char text[] = "abi: this line came by NOTIFY\n";
    hypercall1(NOTIFY, 0);                              /* nothing */
    hypercall1(NOTIFY, pa(text));
    char on_stack[40];
    snprintf(on_stack, sizeof on_stack, "abi: and %s\n", "this one from a stack");
    hypercall1(NOTIFY, pa(on_stack));
    char piece[2] = "";
    for (const char *p = "abi: letter by letter\n"; *p; p++) {
        piece[0] = *p;
        hypercall1(NOTIFY, pa(piece));                  /* done when it returns: the buffer is ours again */
    }
    /* Over a page's end, the string's first byte being the page's last. */
    char *pages = alloc_pages(2);
    memcpy(pages + PAGE_SIZE - 1, "abi: over a page's end\n", 24);
    hypercall1(NOTIFY, pa(pages) + PAGE_SIZE - 1);
}

/* The calls that are always direct may also stand in the middle of other work. */
static void many(void)
{
    uint64_t start = rdtsc();
    for (uint32_t i = 0; i < 2000; i++)
        hypercall0(i & 1 ? FLUSH_ASYNC : SEND_INTERRUPTS);
    uint32_t ns = (uint32_t)div64((uint64_t)tsc_to_us(rdtsc() - start) * 1000, 2000);
    printf("abi: a hypercall takes %u.%u us\n", ns / 1000, ns / 100 % 10);
}

const struct subject call_subjects[] = {
    { "registers", registers, ANY }, { "init", init, ANY }, { "notify", notify, ANY }, { "many", many, ANY }, { 0, 0, 0 },
};
