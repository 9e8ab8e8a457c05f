/* The way up of all CPUs: the first one as lguest's always did, the others by the SMP extension. */
#include "guest.h"

const char machine_name[] = "lguest", cpu_id_name[] = "vCPU", cpu_waking[] = "CPU_UP";
uint32_t smp_version;

static uint8_t ap_stacks[MAX_CPUS][STACK_SIZE] __attribute__((aligned(4096)));
extern uint8_t next_start[];
void start_in_c(struct cpu *c);
static uint32_t count_cpus(void);
__attribute__((weak)) void before_smp(void);

uint32_t cpu_id(void) { return smp_version ? cpuid(0x40000001, 0).ecx : 0; }

static void setup_this_cpu(struct cpu *c)
{
    c->self = c;
    setup_cpu_tables(c);                                /* from here on this_cpu() works */
    if (paging)
        hypercall1(NEW_PGTABLE, pa(page_root));
    c->m.data.blocked_interrupts = 0;
}

static void first_cpu(void)
{
    setup_memory();
    setup_this_cpu(&cpus[0]);
    if (page_offset() || !(starts_linear || option("linear")))  /* linked high: there is no way without */
        setup_paging();
    cpus[0].online = 1;
    read_options();
    sti();
    setup_time();
    uint32_t there = count_cpus(), limit = option_number("cpus", MAX_CPUS);     /* cpus=N: leave the others asleep */
    if (before_smp)
        before_smp();
    if (smp_version)
        hypercall1(SMP_INIT, 1);
    for (uint32_t i = 1; i < there && i < limit; i++) {
        struct cpu *c = &cpus[i];
        c->index = i;
        c->stack_top = ap_stacks[i] + STACK_SIZE;
        hypercall3(CPU_UP, i, pa(next_start), pa(c));
        char what[64];
        snprintf(what, sizeof what, "CPU %u to come up after CPU_UP", i);
        spin_until(c->online, what);
        ncpus++;
    }
    announce(smp_version ? "SMP extension" : "no SMP extension");
    guest_main();
    fail("guest_main returned without a verdict");
}

static void next_cpu(struct cpu *c)
{
    setup_this_cpu(c);
    check(cpu_id() == c->index, "CPU %u: woke as vCPU %u", c->index, cpu_id());
    c->online = 1;
    sti();
    idle(c);
}

void start_in_c(struct cpu *c)
{
    if (c == &cpus[0])
        first_cpu();
    next_cpu(c);
}

static uint32_t count_cpus(void)
{
    struct cpuid top = cpuid(0x40000000, 0);
    if (memcmp(&top.ebx, "smpguestsmpg", 12) || top.eax < 0x40000001)
        return 1;
    struct cpuid leaf = cpuid(0x40000001, 0);
    smp_version = leaf.eax;
    return smp_version ? leaf.ebx : 1;
}

/* ---- time ---- */

static volatile uint32_t ticks;
static void handle_tick(struct trap *t) { (void)t; ticks++; }          /* of sleep_until(), and the one here */
static void handle_wake(struct trap *t) { (void)t; }                   /* its work is done by ending the HALT */

static uint64_t wall_clock(void)                        /* the Host writes it with every interrupt that it delivers */
{
    uint32_t before = ticks;
    timer_start(VECTOR_TICK, 10000000);
    while (ticks == before)
        pause();
    return cpus[0].m.data.seconds * 1000000000ull + cpus[0].m.data.nanoseconds;
}

void setup_time(void)
{
    on_vector(VECTOR_TICK, handle_tick);
    on_vector(VECTOR_WAKE, handle_wake);
    tsc_khz = cpus[0].m.data.tsc_khz;
    tsc_source = "lguest_data";
    if (tsc_khz)
        return;
    uint64_t first = wall_clock(), tsc = rdtsc(), ns = wall_clock() - first;
    tsc_khz = (uint32_t)div64((rdtsc() - tsc) * 1000000, (uint32_t)ns);
    tsc_source = "the Host's clock";
}
