/* Interrupts: when they come, when they wait, what they find on the stack and leave in struct lguest_data. The source is
   this CPU's clock (irq 0); with the SMP extension also an irq that the CPU sends to itself. */
#include "abi.h"

enum { VECTOR_CLOCK = VECTOR_IRQ0, SOON = 1000, LATE_US = 20000 };     /* ns until it is due; a time in which it must have come */
static volatile uint32_t came, order, flag_seen, flags_seen;
static struct trap frame;

static void handle(struct trap *t)
{
    came++;
    order = order * 10 + (uint32_t)t->vector - VECTOR_IRQ0;
    flag_seen = my_data()->irq_enabled;
    flags_seen = (uint32_t)t->flags;
    frame = *t;
}

/* The library turns irqs into timers and IPIs; here they shall come as they are (raw_irqs). */
static void begin(void)
{
    cli();
    this_cpu()->timer_taken = true;
    timer_stop();
    for (uint32_t v = 0; v < IRQS; v++)
        on_vector(VECTOR_IRQ0 + v, handle);
    this_cpu()->m.raw_irqs = true;
    sti();
    delay_us(500);                                      /* what was on its way is here now */
    came = order = 0;
    my_data()->irq_pending = 0;
}

static void finish(void)
{
    my_data()->blocked_interrupts = 0;
    hypercall1(SET_CLOCKEVENT, 0);
    sti();
    delay_us(500);
    this_cpu()->m.raw_irqs = false;
    for (uint32_t v = 0; v < IRQS; v++)
        on_vector(VECTOR_IRQ0 + v, 0);
    this_cpu()->timer_taken = false;
}

static bool comes_within(uint32_t n, uint32_t us)
{
    uint64_t end = rdtsc() + us_to_tsc(us) * 50;        /* others may have the core */
    uint64_t soon = rdtsc() + us_to_tsc(us);
    while (came < n && rdtsc() < end)
        pause();
    if (came >= n && rdtsc() > soon)
        printf("abi: an interrupt came only after more than %u us\n", us);
    return came >= n;
}

static void arm(uint32_t ns) { hypercall1(SET_CLOCKEVENT, ns); }

static void pending(void)
{
    struct lguest_data *d = my_data();
    begin();
    arm(SOON);
    check(comes_within(1, LATE_US), "the clock's interrupt did not come");
    check(flag_seen == 0, "irq_enabled is %x in the handler of an interrupt gate", flag_seen);
    check(flags_seen & FLAG_IF && irqs_on(), "the frame's flags are %x, and irq_enabled %x afterwards", flags_seen, d->irq_enabled);

    /* Masked in blocked_interrupts: it waits there, without a trace in irq_pending, and comes when that changes. */
    d->blocked_interrupts = 1;
    arm(SOON);
    delay_us(3000);
    hypercall0(SEND_INTERRUPTS);
    check(came == 1 && d->irq_pending == 0, "a blocked interrupt came (%u), or was noted in irq_pending (%x)", came, d->irq_pending);
    d->blocked_interrupts = 0;
    hypercall0(SEND_INTERRUPTS);
    check(came == 2, "an unblocked interrupt did not come with SEND_INTERRUPTS");

    /* Off: it waits, irq_pending says so, SEND_INTERRUPTS brings it at once. */
    d->irq_enabled = 0;
    arm(SOON);
    uint64_t end = rdtsc() + us_to_tsc(1000000);
    while (!d->irq_pending && rdtsc() < end)
        pause();
    check(d->irq_pending == 0x200, "irq_pending is %x while an interrupt waits", d->irq_pending);
    delay_us(1000);
    check(came == 2, "an interrupt came while irq_enabled was 0");
    d->irq_enabled = 0x200;
    hypercall0(SEND_INTERRUPTS);
    check(came == 3, "an interrupt did not come with SEND_INTERRUPTS");
    check(d->irq_pending == 0x200, "irq_pending is %x after the delivery: lguest never cleared it", d->irq_pending);
    d->irq_pending = 0;

    /* A plain store, as Linux' STI is: it comes all the same, a little later. */
    for (uint32_t i = 0; i < 50; i++) {
        uint32_t before = came;
        d->irq_enabled = 0;
        arm(SOON);
        delay_us(100 + 10 * i);
        check(came == before, "an interrupt came while irq_enabled was 0");
        d->irq_enabled = 0x200;
        check(comes_within(before + 1, LATE_US), "an interrupt that waited did not come after irq_enabled was set");
    }
    /* Also when it was blocked meanwhile. */
    uint32_t before = came;
    d->blocked_interrupts = ~0u;
    arm(SOON);
    delay_us(1000);
    d->blocked_interrupts = 0;
    hypercall0(FLUSH_ASYNC);
    check(comes_within(before + 1, LATE_US), "an interrupt that was blocked did not come after a hypercall");

    /* Any number but 0 is "on": after Linux' IRET there are all of the flags. */
    before = came;
    d->irq_enabled = 0x46;
    arm(SOON);
    check(comes_within(before + 1, LATE_US), "irq_enabled 0x46 is not 0, but no interrupt came");
    check(!(flags_seen & FLAG_IF), "irq_enabled 0x46 has no IF, but the frame's flags are %x", flags_seen);
    d->irq_enabled = 0x200;
    finish();
}

/* ---- the frame ---- */

SNIPPET(spin, "1: add $1, %ebp; test %esi, (%edi); jz 1b");    /* until the handler has written */
static volatile uint32_t go;
static void handle_spin(struct trap *t)
{
    handle(t);
    go = 1;
    t->cx = 0;
}

static void handle_spin_user(struct trap *t)
{
    handle(t);
    leave_code(t);
}

static void frame_ring1(void)
{
    begin();
    on_vector(VECTOR_CLOCK, handle_spin);
    struct run r = ring1(spin);
    go = 0;
    r.t.si = ~0u;
    r.t.di = (reg_t)&go;
    r.t.flags = 0x202 | 0x400 | 0x40;                   /* direction and more: the handler's frame has them */
    r.t.dx = 0x12121212;
    cli();                                              /* until the loop begins */
    arm(300000);
    run_to_trap(&r, END, 0, "an interrupted loop");
    sti();
    check(came == 1, "%u interrupts in a loop", came);
    check(frame.cs == SEL_KCODE && frame.ip >= (reg_t)spin && frame.ip < (reg_t)spin + 16, "the frame says %lx:%lx", frame.cs, frame.ip);
    check(frame.flags & 0x400 && frame.flags & FLAG_IF, "the frame's flags are %lx", frame.flags);
    check(frame.dx == 0x12121212 && frame.di == (reg_t)&go && frame.fs == SEL_PERCPU, "registers changed on the way to the handler");
    finish();
}

static void frame_ring3(void)
{
    uint8_t *code = user_page(), *data = user_page();
    begin();
    for (int halves = 0; halves < 20; halves++) {
        on_vector(VECTOR_CLOCK, handle_spin_user);
        struct run r = ring3(copy_to_user(code, spin, 64), (uint32_t)(uintptr_t)data + 0x800);
        *(volatile uint32_t *)data = 0;
        r.t.si = ~0u;
        r.t.di = (reg_t)data;
        r.t.dx = 0x34343434;
        cli();                                          /* until ring 3 begins */
        arm(200000 + 1000 * (uint32_t)halves);
        run_code(&r);
        sti();
        check(r.t.vector == VECTOR_CLOCK, "an interrupt in ring 3 came as vector %lu", r.t.vector);
        check(r.t.cs == (SEL_UCODE32 | 3) && r.t.ip >= (reg_t)code && r.t.ip < (reg_t)code + 16, "the frame says %lx:%lx", r.t.cs, r.t.ip);
        check(r.t.ss == (SEL_UDATA | 3) && r.t.sp == (reg_t)data + 0x800, "the frame says that the stack is %lx:%lx", r.t.ss, r.t.sp);
        check(r.t.ds == (SEL_UDATA | 3) && r.t.dx == 0x34343434 && r.t.flags & FLAG_IF, "registers changed on the way to the handler");
    }
    finish();
}

/* A trap gate leaves irq_enabled as it is. */
static void gate_types(void)
{
    begin();
    idt_gate(VECTOR_CLOCK, 0, GATE_TRAP);
    arm(SOON);
    check(comes_within(1, LATE_US), "no interrupt through a trap gate");
    idt_gate(VECTOR_CLOCK, 0, GATE_INTERRUPT);
    check(flag_seen & FLAG_IF, "irq_enabled is %x in the handler of a trap gate", flag_seen);
    finish();
}

/* ---- the noirq region ---- */

extern const uint8_t noirq_spin[], noirq_start[], noirq_end[];
asm(".pushsection .noirq, \"ax\"\n"                      /* ecx: a counter down; edx: rounds */
    "noirq_spin: 1: sub $1, %ecx; jnz 1b\n"
    "   mov (%edi), %ebx\n"                             /* how many have come so far */
    "   jmp *%eax\n"
    ".popsection\n"
    ".pushsection .text; after_noirq: mov %ebx, %edx; 1: cmp %ebx, (%edi); je 1b; int $0x80; .popsection");
extern const uint8_t after_noirq[];

static void noirq(void)
{
    begin();
    check((reg_t)noirq_spin >= (reg_t)noirq_start && (reg_t)noirq_spin < (reg_t)noirq_end, "the test's loop is not in the region");
    for (uint32_t i = 0; i < 5; i++) {
        struct run r = ring1(noirq_spin);
        r.t.ax = (reg_t)after_noirq;
        r.t.di = (reg_t)&came;
        r.t.cx = 3000000;
        uint32_t before = came;
        cli();                                          /* until the end of the IRET that begins it */
        arm(SOON);
        run_to_trap(&r, END, 0, "a loop in the noirq region");
        sti();
        check(r.t.dx == before, "%lu interrupts came in the noirq region", r.t.dx - before);
        check(came == before + 1, "%u interrupts after the noirq region", came - before);
        check(frame.ip < (reg_t)noirq_start || frame.ip >= (reg_t)noirq_end, "an interrupt came at %lx, in the noirq region", frame.ip);
    }
    finish();
}

/* ---- HALT ---- */

static void halting(void)
{
    struct lguest_data *d = my_data();
    begin();
    for (uint32_t i = 0; i < 20; i++) {
        bool on = i & 1;
        d->irq_enabled = on ? 0x200 : 0;                /* either way: HALT turns them on */
        arm(on ? 20000000 : i < 10 ? 500000 : 1);       /* on: it must not come before the HALT */
        hypercall0(HALT);
        check(came == i + 1, "HALT ended with %u interrupts instead of %u", came, i + 1);
        check(flags_seen & FLAG_IF && irqs_on(), "HALT: the frame's flags are %x, irq_enabled afterwards %x", flags_seen, d->irq_enabled);
    }
    /* Already deliverable: it does not sleep. */
    d->irq_enabled = 0;
    arm(SOON);
    delay_us(2000);
    uint64_t start = rdtsc();
    hypercall0(HALT);
    check(came == 21, "HALT with an interrupt pending: %u", came);
    check(tsc_to_us(rdtsc() - start) < 1000000, "HALT with an interrupt pending slept for %u us", tsc_to_us(rdtsc() - start));
    /* A blocked one does not end it: the clock is blocked, so only the irq to itself can. */
    if (smp_version) {
        d->blocked_interrupts = 1;
        arm(SOON);
        delay_us(1000);
        d->irq_enabled = 0;
        hypercall2(SEND_IPI, cpu_index(), 9);
        hypercall0(HALT);
        check(came == 22 && frame.vector == VECTOR_IRQ0 + 9, "HALT with the clock blocked ended with vector %lu", frame.vector);
        d->blocked_interrupts = 0;
        hypercall0(SEND_INTERRUPTS);
        check(came == 23, "the clock's interrupt is lost after a HALT in which it was blocked");
    }
    /* No handler: HALT ends all the same, the interrupt stays pending, the time is written. */
    hypercall3(LOAD_IDT_ENTRY, VECTOR_CLOCK, 0, 0);
    uint32_t before = came, seconds = d->seconds, nanoseconds = d->nanoseconds;
    arm(500000);
    hypercall0(HALT);
    check(came == before, "an interrupt without a gate came");
    check(d->seconds != seconds || d->nanoseconds != nanoseconds, "no timestamp after an interrupt without a gate");
    idt_gate(VECTOR_CLOCK, 0, GATE_INTERRUPT);
    hypercall0(SEND_INTERRUPTS);
    check(came == before + 1, "an interrupt that had no gate did not come when it had one");
    finish();
}

/* ---- several at once ---- */

static void lowest_first(void)
{
    if (!smp_version)
        return;
    struct lguest_data *d = my_data();
    begin();
    d->irq_enabled = 0;
    static const uint8_t irqs[] = { 5, 3, 9, 3, 1 };
    for (uint32_t i = 0; i < array_size(irqs); i++)
        hypercall2(SEND_IPI, cpu_index(), irqs[i]);
    d->irq_enabled = 0x200;
    hypercall0(SEND_INTERRUPTS);
    check(comes_within(4, LATE_US), "only %u of 4 pending interrupts came", came);
    delay_us(1000);
    check(came == 4 && order == 1359, "interrupts came in the order %u (%u of them)", order, came);
    finish();
}

const struct subject interrupt_subjects[] = {
    { "irq-pending", pending, ANY }, { "irq-frame", frame_ring1, ANY }, { "irq-frame-ring3", frame_ring3, PAGED },
    { "irq-gates", gate_types, ANY }, { "irq-noirq", noirq, ANY }, { "irq-halt", halting, ANY }, { "irq-lowest", lowest_first, ANY },
    { 0, 0, 0 },
};
