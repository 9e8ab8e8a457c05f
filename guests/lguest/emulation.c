/* What a kernel executes before it is patched: CLI is nothing, IN is all ones, OUT goes nowhere. And the FPU, which
   comes lazily by CR0.TS. */
#include "abi.h"

SNIPPET(e_cli, "cli");
SNIPPET(e_in_ib, "in $0x60, %al");
SNIPPET(e_in_id, "in $0x60, %eax");
SNIPPET(e_in_iw, "in $0x60, %ax");
SNIPPET(e_in_b, "in %dx, %al");
SNIPPET(e_in_d, "in %dx, %eax");
SNIPPET(e_in_w, "in %dx, %ax");
SNIPPET(e_in_pb, ".byte 0x66; in %dx, %al");
SNIPPET(e_out_ib, "out %al, $0x80");
SNIPPET(e_out_id, "out %eax, $0x80");
SNIPPET(e_out_iw, "out %ax, $0x80");
SNIPPET(e_out_b, "out %al, %dx");
SNIPPET(e_out_d, "out %eax, %dx");
SNIPPET(e_out_w, "out %ax, %dx");
SNIPPET(e_ins, "insb");
SNIPPET(e_outs, "outsb");
SNIPPET(e_rep_ins, "rep insb");
SNIPPET(e_two_prefixes, ".byte 0x66, 0x66; in %dx, %ax");
SNIPPET(e_prefixed_cli, ".byte 0x66; cli");
SNIPPET(e_other_prefix, ".byte 0x3E; in %dx, %al");

static const struct { const char *what; const uint8_t *code; uint32_t length, eax; } done[] = {
    { "cli", e_cli, 1, 0x12345678 },
    { "in imm, al", e_in_ib, 2, 0x123456FF }, { "in imm, ax", e_in_iw, 3, 0x1234FFFF }, { "in imm, eax", e_in_id, 2, 0xFFFFFFFF },
    { "in dx, al", e_in_b, 1, 0x123456FF }, { "in dx, ax", e_in_w, 2, 0x1234FFFF }, { "in dx, eax", e_in_d, 1, 0xFFFFFFFF },
    { "0x66, in dx, al", e_in_pb, 2, 0x123456FF },
    { "out al, imm", e_out_ib, 2, 0x12345678 }, { "out ax, imm", e_out_iw, 3, 0x12345678 }, { "out eax, imm", e_out_id, 2, 0x12345678 },
    { "out al, dx", e_out_b, 1, 0x12345678 }, { "out ax, dx", e_out_w, 2, 0x12345678 }, { "out eax, dx", e_out_d, 1, 0x12345678 },
};

static void emulated(void)
{
    for (uint32_t i = 0; i < array_size(done); i++)
        for (uint32_t port = 0x20; port < 0x400; port += 0x1B1) {
            struct run r = ring1(done[i].code);
            r.t.ax = 0x12345678;
            r.t.dx = port;
            r.t.flags = 0x202 | 0x8D5;
            run_to_trap(&r, END, 0, done[i].what);
            check(r.t.ip == (reg_t)done[i].code + done[i].length + 2, "%s: it is not %u bytes long, they say", done[i].what, done[i].length);
            check(r.t.ax == done[i].eax, "%s: eax is %lx instead of %x", done[i].what, r.t.ax, done[i].eax);
            check(r.t.dx == port && r.t.flags == (0x202 | 0x8D5), "%s changed dx or the flags (%lx)", done[i].what, r.t.flags);
        }
    check(irqs_on(), "CLI did something");
}

static void not_emulated(void)
{
    static const struct { const char *what; const uint8_t *code; } left[] = {
        { "INS", e_ins }, { "OUTS", e_outs }, { "REP INS", e_rep_ins }, { "two 0x66 and IN", e_two_prefixes }, { "0x66 and CLI", e_prefixed_cli },
        { "another prefix and IN", e_other_prefix },
    };
    static uint8_t buffer[16];
    for (uint32_t i = 0; i < array_size(left); i++) {
        struct run r = ring1(left[i].code);
        r.t.si = r.t.di = (reg_t)buffer;
        r.t.cx = 1;
        run_to_trap(&r, 13, 0, left[i].what);
        check(r.t.ip == (reg_t)left[i].code, "%s: ip is %lx in the frame", left[i].what, r.t.ip);
    }
}

/* An instruction on two pages that are not neighbours in memory: the port's number is of no interest. */
static void across(void)
{
    reg_t at = FREE_VA + 0x40000;
    uint8_t *first = alloc_page(), *unused = alloc_page(), *second = alloc_page();
    (void)unused;
    memset(first, 0x90, PAGE_SIZE);
    first[PAGE_SIZE - 1] = 0xE4;                        /* in $0x60, %al; int $0x80 */
    memcpy(second, "\x60\xCD\x80", 3);
    map_page(at, pa(first), PTE_W);
    map_page(at + PAGE_SIZE, pa(second), PTE_W);
    struct run r = ring1((void *)(at + PAGE_SIZE - 1));
    run_to_trap(&r, END, 0, "IN over a page's end");
    check((r.t.ax & 0xFF) == 0xFF && r.t.ip == at + PAGE_SIZE + 3, "IN over a page's end: eax %lx, ip %lx", r.t.ax, r.t.ip);
    free_page(unused);
}

/* ---- TS ---- */

SNIPPET(fpu, "fninit; fld1; fistpl (%eax)");
SNIPPET(sse, "xorps %xmm0, %xmm0");
SNIPPET(wait_for_it, "fwait");

static volatile uint32_t fpu_value;
static void expect_fpu(bool there)
{
    const uint8_t *const codes[] = { fpu, sse };        /* FWAIT: only if MP is set, which is the Host's affair */
    for (uint32_t i = 0; i < array_size(codes); i++) {
        struct run r = ring1(codes[i]);
        r.t.ax = (reg_t)&fpu_value;
        fpu_value = 0;
        run_to_trap(&r, there ? END : 7, 0, there ? "the FPU with TS off" : "the FPU with TS on");
        check(i || fpu_value == there, "the FPU calculated %u", fpu_value);
    }
    (void)wait_for_it;
}

static volatile uint32_t lazily;
static void handle_lazy(struct trap *t)
{
    (void)t;
    lazily++;
    hypercall1(TS, 0);
}

static void ts(void)
{
    hypercall1(TS, 0);
    expect_fpu(true);
    hypercall1(TS, 1);
    expect_fpu(false);
    hypercall1(TS, 0x80000000);                         /* any number but 0 */
    expect_fpu(false);
    lazily = 0;
    on_vector(7, handle_lazy);
    struct run r = ring1(fpu);
    r.t.ax = (reg_t)&fpu_value;
    run_to_trap(&r, END, 0, "the FPU, switched on in the handler");
    on_vector(7, 0);
    check(lazily == 1 && fpu_value == 1, "#NM came %u times", lazily);
    expect_fpu(true);
}

static void ts_here(void *unused) { (void)unused; ts(); }
static void ts_each(void)
{
    hypercall1(TS, 1);                                  /* this CPU's, not theirs */
    for (uint32_t i = 1; i < ncpus; i++) {
        run_on(i, ts_here, 0);
        wait_done(i);
    }
    expect_fpu(false);
    hypercall1(TS, 0);
    expect_fpu(true);
}

const struct subject emulation_subjects[] = {
    { "emulated", emulated, ANY }, { "not-emulated", not_emulated, ANY }, { "emulated-across", across, PAGED }, { "ts", ts, ANY },
    { "ts-each", ts_each, ANY }, { 0, 0, 0 },
};
