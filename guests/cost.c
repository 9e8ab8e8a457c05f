/* cost: what the ways between Guest and Host cost, on the pc and on the lguest machine. One line each:
     cost NAME median=CYCLES best=CYCLES of=SAMPLES
   hypercall, async   a call that does nothing, by itself and in the ring (lguest)
   port, notify       a port or an address that nobody but the Launcher answers
   trap0, trap3       #UD in the kernel and in ring 3, through an interrupt gate and back
   syscall            int $0x80 in ring 3, through a trap gate (pc: the same as any) and back
   clock              from the time that was asked for until the handler runs
   ipi, ipi-halted    from sending it until the other CPU's handler runs, which was awake or halted
   kick, irq          a queue's NOTIFY until its service has taken the request; the service's interrupt until the handler runs.
                      Only with `clock` on the command line, which says that the source of random numbers is perf's clock. */
#include "guest.h"
#ifdef MACHINE_LGUEST
#include "lguest/abi.h"
#endif

const char guest_name[] = "cost";

/* ---- samples ---- */

enum { SAMPLES = 301, EACH = 16 };
static uint32_t samples[SAMPLES], taken;

static void sample(uint64_t cycles)
{
    if (taken < SAMPLES)
        samples[taken++] = cycles > ~0u ? ~0u : (uint32_t)cycles;
}

static uint32_t say(const char *name)
{
    for (uint32_t i = 1; i < taken; i++)
        for (uint32_t k = i; k && samples[k - 1] > samples[k]; k--) {
            uint32_t larger = samples[k - 1];
            samples[k - 1] = samples[k];
            samples[k] = larger;
        }
    uint32_t median = samples[taken / 2];
    printf("cost %s median=%u best=%u of=%u\n", name, median, samples[0], taken);
    taken = 0;
    return median;
}

/* `operation` so often that the look at the clock does not count. */
static uint32_t measure(const char *name, void (*operation)(void))
{
    operation();
    for (uint32_t i = 0; i < SAMPLES; i++) {
        uint64_t start = rdtsc();
        for (uint32_t k = 0; k < EACH; k++)
            operation();
        sample((rdtsc() - start) / EACH);
    }
    return say(name);
}

/* ---- into the Host and back ---- */

#ifdef MACHINE_LGUEST
static void call_nothing(void) { hypercall0(FLUSH_ASYNC); }
static void notify_launcher(void) { static const char nothing[] = ""; hypercall1(NOTIFY, pa(nothing)); }

/* The whole ring at once; the call that has it done is not in the figure. */
static void async(uint32_t hypercall_itself)
{
    struct lguest_data *d = my_data();
    uint32_t slot = 0;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        for (uint32_t n = 0; n < RING_SLOTS; n++, slot = (slot + 1) % RING_SLOTS) {
            d->calls[slot][0] = SEND_INTERRUPTS;
            compiler_barrier();
            d->status[slot] = 0;
        }
        uint64_t start = rdtsc();
        hypercall0(FLUSH_ASYNC);
        uint64_t gone = rdtsc() - start;
        sample(gone > hypercall_itself ? (gone - hypercall_itself) / RING_SLOTS : 0);
    }
    say("async");
}

static void into_the_host(void)
{
    async(measure("hypercall", call_nothing));
    measure("notify", notify_launcher);
}
#else
static void read_port(void) { inb(0x3F9); }             /* the UART's IER: the Host has to be asked, and nothing happens */
static void into_the_host(void) { measure("port", read_port); }
#endif

/* ---- traps: as little around them as there can be ----
 * A loop of traps, %ecx times, that ends with int $END. The handler of #UD steps over it; that of int $0x80 is the library's
 * unless %eax says that it is one of these. */

enum { OURS = 0x0C057 };
#ifdef __x86_64__
#define IRET "iretq"
#define SKIP "addq $2, (%rsp);"
#else
#define IRET "iret"
#define SKIP "addl $2, (%esp);"
#endif
#ifdef MACHINE_LGUEST                                   /* an interrupt gate turned them off, and IRET does not turn them on */
#define INTERRUPTS_ON "movl $0x200, %ss:cpus + 12;"
_Static_assert(offsetof(struct cpu, m.data.irq_enabled) == 12, "INTERRUPTS_ON has this number");
#else
#define INTERRUPTS_ON ""
#endif
extern const uint8_t undefined_loop[], call_loop[], loops_end[], undefined_entry[], call_entry[];
asm(".pushsection .text\n"
    "undefined_loop: 1: ud2; dec %ecx; jnz 1b; int $0x80\n"
    "call_loop: 1: int $0x80; dec %ecx; jnz 1b; xor %eax, %eax; int $0x80\n"
    "loops_end:\n"
    "undefined_entry: " SKIP INTERRUPTS_ON IRET "\n"
    "call_entry: cmp $0xC057, %eax; jne trap_stubs + 16 * 0x80; " IRET "\n"
    ".popsection");

#ifdef MACHINE_LGUEST
static void set_gate(uint32_t vector, const uint8_t *entry, uint32_t dpl, bool trap)
{
    idt_set(vector, entry, dpl, trap ? GATE_TRAP : GATE_INTERRUPT);
}
#else
static void set_gate(uint32_t vector, const uint8_t *entry, uint32_t dpl, bool trap)
{
    reg_t at = (reg_t)entry;
    uint32_t gate[4] = { SEL_KCODE << 16 | (at & 0xFFFF), (at & 0xFFFF0000) | 0x8000 | dpl << 13 | (trap ? 0xF00 : 0xE00) };
    idt_raw(vector, gate);
}
#endif

#ifdef __x86_64__
#define USER_CODE (SEL_UCODE64 | 3)
#else
#define USER_CODE (SEL_UCODE32 | 3)
#endif

static void traps(const char *name, const uint8_t *code, uint16_t cs)
{
    for (uint32_t i = 0; i <= SAMPLES; i++) {
        struct run r = { .t = { .cs = cs, .ip = (reg_t)code, .flags = 0x202, .cx = 4 * EACH, .ax = OURS } };
        r.t.ds = r.t.es = r.t.ss = cs & 3 ? (SEL_UDATA | 3) : SEL_KDATA;
        if (cs & 2)
            r.t.sp = (reg_t)code + PAGE_SIZE / 2;
        else
            r.t.fs = SEL_PERCPU;
        uint64_t start = rdtsc();
        run_code(&r);
        if (i)                                          /* the first one has it translated */
            sample((rdtsc() - start) / (4 * EACH));
        check(r.t.vector == END && r.t.cx == 0, "%s ended with vector %lu, %lu to go", name, r.t.vector, r.t.cx);
    }
    say(name);
}

static void all_traps(void)
{
    uint8_t *page = user_page();
    memcpy(page, undefined_loop, (size_t)(loops_end - undefined_loop));
    catch(END);
    set_gate(6, undefined_entry, 0, false);
    traps("trap0", undefined_loop, SEL_KCODE);
    traps("trap3", page, USER_CODE);
    set_gate(END, call_entry, 3, true);
    traps("syscall", page + (call_loop - undefined_loop), USER_CODE);
}

/* ---- interrupts ---- */

enum { VECTOR_CLOCK = 0x50, VECTOR_OTHER = 0x51, AHEAD_US = 200, SLEEP_US = 300 };
static volatile uint64_t arrived;
static void note(struct trap *t) { (void)t; arrived = rdtsc(); irq_done(); }

static void clock(void)
{
    on_vector(VECTOR_CLOCK, note);
    this_cpu()->timer_taken = true;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        arrived = 0;
        uint64_t due = rdtsc() + us_to_tsc(AHEAD_US);
        timer_start(VECTOR_CLOCK, AHEAD_US * 1000);
        spin_until(arrived, "the timer's interrupt");
        sample(arrived > due ? arrived - due : 0);
    }
    this_cpu()->timer_taken = false;
    say("clock");
}

static volatile bool stay_awake;
static void keep_awake(void *unused) { (void)unused; while (stay_awake) pause(); }

static void ipis(const char *name, bool halted)
{
    on_vector(VECTOR_OTHER, note);
    stay_awake = !halted;
    cpus[1].timer_taken = true;
    run_on(1, keep_awake, 0);
    for (uint32_t i = 0; i < SAMPLES; i++) {
        delay_us(halted ? SLEEP_US : 5);
        arrived = 0;
        uint64_t start = rdtsc();
        ipi(1, VECTOR_OTHER);
        spin_until(arrived, "an IPI to arrive");
        if (i)                                          /* the first one of a vector gets it its irq (lguest) */
            sample(arrived - start);
    }
    stay_awake = false;
    wait_done(1);
    cpus[1].timer_taken = false;
    say(name);
}

/* ---- a device that tells the time ---- */

#ifdef MACHINE_LGUEST
/* What it fills in: when this request was taken, and when the interrupt for the one before was sent. */
static volatile struct { uint64_t taken, interrupted; } told;

static void device(void)
{
    static struct device d;
    static uint32_t irq[SAMPLES];
    uint32_t irqs = 0;
    uint64_t handled = 0;
    check(find_device(DEVICE_RNG, 0, &d), "there is no source of random numbers (--rng)");
    start_device(&d, 0);
    struct vring *q = &d.queue[0];
    on_vector(VECTOR_IRQ0 + q->irq, note);
    struct piece piece = { &told, sizeof told, true };
    for (uint32_t i = 0; i <= SAMPLES; i++) {
        spin_until(!(q->used->flags & 1), "the service to wait for a NOTIFY");
        delay_us(SLEEP_US);
        arrived = 0;
        vring_offer(q, &piece, 1);
        uint64_t start = rdtsc();
        vring_notify(q);
        vring_wait(q, "the time");
        spin_until(arrived, "a device's interrupt");
        if (i) {
            sample(told.taken - start);
            irq[irqs++] = (uint32_t)(handled - told.interrupted);
        }
        handled = arrived;
    }
    say("kick");
    for (uint32_t i = 0; i < irqs; i++)
        sample(irq[i]);
    say("irq");
}
#endif

void guest_main(void)
{
    into_the_host();
    all_traps();
    clock();
    if (ncpus > 1) {
        ipis("ipi", false);
        ipis("ipi-halted", true);
    }
#ifdef MACHINE_LGUEST
    if (option("clock"))
        device();
#endif
    pass("TSC %u MHz", tsc_khz / 1000);
}
