/* The SMP extension: CPUs that are stopped and started, what they find then, IPIs, what is theirs alone. */
#include "abi.h"

#define RAW_WORDS 20
static volatile uint32_t raw[RAW_WORDS];                /* as the CPU found itself */
static struct lguest_data raw_data;

/* %esi: `raw`. No stack: esp is 0. It notes everything, does LGUEST_INIT with a struct of its own, and stops. */
extern const uint8_t raw_start[];
asm(".pushsection .text\n"
    "raw_start: mov %eax, (%esi); mov %ebx, 4(%esi); mov %ecx, 8(%esi); mov %edx, 12(%esi); mov %esi, 16(%esi)\n"
    "   mov %edi, 20(%esi); mov %ebp, 24(%esi); mov %esp, 28(%esi)\n"
    "   movl $0, 32(%esi); mov %cs, %eax; mov %eax, 32(%esi); mov %ds, %eax; mov %eax, 36(%esi); mov %es, %eax; mov %eax, 40(%esi)\n"
    "   mov %ss, %eax; mov %eax, 44(%esi); mov %fs, %eax; mov %eax, 48(%esi); mov %gs, %eax; mov %eax, 52(%esi)\n"
    "   lea 80(%esi), %esp; pushf; pop %eax; mov %eax, 56(%esi)\n"
    "   mov 60(%esi), %ebx; mov $1, %eax; int $0x1f\n"  /* LGUEST_INIT */
    "   movl $1, 64(%esi)\n"
    "1: mov 68(%esi), %eax; test %eax, %eax; jz 1b\n"   /* until we say so */
    "   lea 72(%esi), %ebx; mov $34, %eax; int $0x1f\n" /* CPU_DOWN */
    "   movl $2, 64(%esi); jmp 1b\n"
    ".popsection");

static volatile uint32_t down[MAX_CPUS];                /* the Host says so */

static void go_down(void *unused)
{
    (void)unused;
    cpus[cpu_index()].online = 0;
    compiler_barrier();
    hypercall1(CPU_DOWN, pa(&down[cpu_index()]));
    fail("CPU %u went on behind CPU_DOWN", cpu_index());
}

static void stop_by(uint32_t i, void (*how)(void *))
{
    down[i] = 0;
    run_on(i, how, 0);
    spin_until(down[i], "a CPU to stop");
}

static void stop(uint32_t i) { stop_by(i, go_down); }

extern uint8_t next_start[];
static void start_again(uint32_t i)
{
    cpus[i].job = 0;
    cpus[i].sleeping = 0;
    hypercall3(CPU_UP, i, pa(next_start), pa(&cpus[i]));
    spin_until(cpus[i].online, "a CPU to start again");
}

static volatile uint32_t counted[MAX_CPUS];
static void count(void *unused) { (void)unused; counted[cpu_index()]++; }

static void start_state(void)
{
    if (ncpus < 2)
        return;
    stop(1);
    hypercall2(SEND_IPI, 1, 9);                         /* to nobody: forgotten */
    memset((void *)raw, 0xEE, sizeof raw);
    memset(&raw_data, 0, sizeof raw_data);
    memset((void *)raw_data.status, SLOT_FREE, sizeof raw_data.status);
    raw_data.kernel_address = 0xC0000000;
    raw_data.syscall_vec = 0x80;
    raw[15] = pa(&raw_data);
    raw[16] = raw[17] = raw[18] = 0;
    hypercall3(CPU_UP, 1, pa(raw_start), pa(raw));
    spin_until(raw[16] == 1, "CPU 1 to come up by itself");
    static const struct { uint32_t at; const char *name; uint32_t value; } wanted[] = {
        { 0, "eax", 0 }, { 1, "ebx", 0 }, { 2, "ecx", 0 }, { 3, "edx", 0 }, { 5, "edi", 0 }, { 6, "ebp", 0 }, { 7, "esp", 0 },
        { 8, "cs", 0x61 }, { 9, "ds", 0x69 }, { 10, "es", 0x69 }, { 11, "ss", 0x69 }, { 12, "fs", 0 }, { 13, "gs", 0 },
    };
    check(raw[4] == pa(raw), "a started CPU: esi is %x instead of %x", raw[4], pa(raw));
    for (uint32_t i = 0; i < array_size(wanted); i++)
        check(raw[wanted[i].at] == wanted[i].value, "a started CPU: %s is %x instead of %x", wanted[i].name, raw[wanted[i].at], wanted[i].value);
    check((raw[14] & 0x202) == 0x202 && !(raw[14] & 0x3000), "a started CPU: flags are %x", raw[14]);
    check(raw_data.reserve_mem == 0x400000 && raw_data.tsc_khz == my_data()->tsc_khz && raw_data.seconds, "its own lguest_data is not filled in");
    raw[17] = 1;
    spin_until(raw[18] == 1, "CPU 1 to stop by itself");
    check(raw[16] == 1, "a CPU went on behind CPU_DOWN");
    start_again(1);
    uint32_t before = counted[1];
    run_on(1, count, 0);
    wait_done(1);
    check(counted[1] == before + 1, "a CPU that was started again does not work");
}

static void up_and_down(void)
{
    for (uint32_t round = 0; round < 5; round++)
        for (uint32_t i = 1; i < ncpus; i++) {
            stop(i);
            start_again(i);
            uint32_t before = counted[i];
            run_on(i, count, 0);
            wait_done(i);
            check(counted[i] == before + 1, "CPU %u does not work after being stopped and started", i);
        }
}

/* Interrupts that were pending when it stopped are not there when it starts. */
static volatile uint32_t ghosts[MAX_CPUS];
static void handle_ghost(struct trap *t) { (void)t; ghosts[cpu_index()]++; irq_done(); }

static void go_down_pending(void *unused)
{
    cli();
    hypercall2(SEND_IPI, cpu_index(), 9);
    go_down(unused);
}

static void forgotten(void)
{
    if (ncpus < 2)
        return;
    on_vector(VECTOR_IRQ0 + 9, handle_ghost);
    stop_by(1, go_down_pending);
    hypercall2(SEND_IPI, 1, 9);
    hypercall2(SEND_IPI, ALL_OTHER_CPUS, 9);
    start_again(1);
    delay_us(5000);
    run_on(1, count, 0);
    wait_done(1);
    check(ghosts[1] == 0, "%u interrupts from before its CPU's start", ghosts[1]);
    on_vector(VECTOR_IRQ0 + 9, 0);
}

/* ---- IPIs ---- */

static volatile uint32_t got[MAX_CPUS][4];
static void handle_ipi(struct trap *t) { got[cpu_index()][t->vector - VECTOR_IRQ0 - 7]++; irq_done(); }

static void expect_got(uint32_t cpu, uint32_t irq, uint32_t wanted, const char *what)
{
    spin_until(got[cpu][irq - 7] >= wanted, "an IPI to arrive");
    check(got[cpu][irq - 7] == wanted, "%s: CPU %u got %u instead of %u", what, cpu, got[cpu][irq - 7], wanted);
}

static void ipis(void)
{
    for (uint32_t irq = 7; irq <= 10; irq++)
        on_vector(VECTOR_IRQ0 + irq, handle_ipi);
    memset((void *)got, 0, sizeof got);
    for (uint32_t i = 0; i < ncpus; i++)
        for (uint32_t n = 1; n <= 100; n++) {
            hypercall2(SEND_IPI, i, 7 + (n & 1));
            expect_got(i, 7 + (n & 1), (n + (n & 1)) / 2, "to one");
        }
    for (uint32_t n = 1; n <= 50; n++) {
        hypercall2(SEND_IPI, ALL_OTHER_CPUS, 9);
        for (uint32_t i = 1; i < ncpus; i++)
            expect_got(i, 9, n, "to all others");
    }
    check(got[0][2] == 0, "an IPI to all others came back");
    delay_us(1000);
    for (uint32_t irq = 7; irq <= 10; irq++)
        on_vector(VECTOR_IRQ0 + irq, 0);
}

/* ---- each CPU's TLB is its own, and a change is seen after the flush at the latest ---- */

#define WINDOW (FREE_VA + 0x60000)
static uint32_t *frames[2];
static volatile uint32_t seen;
static void flush_and_look(void *unused)
{
    (void)unused;
    drop_page((void *)WINDOW);
    seen = *(volatile uint32_t *)WINDOW;
}

static void tlbs(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        frames[i] = alloc_page();
        *frames[i] = 0x77770000 + i;
    }
    for (uint32_t round = 0; round < 20; round++)
        for (uint32_t i = 1; i < ncpus; i++) {
            map_page(WINDOW, pa(frames[round & 1]), PTE_W);
            run_on(i, flush_and_look, 0);
            wait_done(i);
            check(seen == 0x77770000 + (round & 1), "CPU %u sees %x after it flushed", i, seen);
        }
    unmap_page(WINDOW);
}

/* Accessed and dirty bits, set by several CPUs on entries of one table at the same time as a CPU clears them. */
static reg_t *shared_table;
static volatile bool enough;
static void touch_pages(void *unused)
{
    (void)unused;
    uint32_t random = 5 + cpu_index();
    while (!enough) {
        uint32_t page = random32(&random) % 64;
        volatile uint32_t *p = (volatile uint32_t *)(WINDOW + 0x100000 + page * PAGE_SIZE) + cpu_index();
        drop_page(p);
        *p = *p + 1;
    }
}

static void bits_together(void)
{
    if (ncpus < 2)
        return;
    reg_t physical[64];
    for (uint32_t i = 0; i < 64; i++) {
        physical[i] = pa(alloc_page());
        map_page(WINDOW + 0x100000 + i * PAGE_SIZE, physical[i], PTE_W);
    }
    shared_table = pte_of(WINDOW + 0x100000, false);
    enough = false;
    for (uint32_t i = 1; i < ncpus; i++)
        run_on(i, touch_pages, 0);
    uint64_t end = rdtsc() + us_to_tsc(300000);
    while (rdtsc() < end)
        for (uint32_t i = 0; i < 64; i++)
            __atomic_fetch_and(&shared_table[i], ~(reg_t)(PTE_A | PTE_D), __ATOMIC_SEQ_CST);
    enough = true;
    for (uint32_t i = 1; i < ncpus; i++)
        wait_done(i);
    for (uint32_t i = 0; i < 64; i++)
        check((shared_table[i] & ~(reg_t)(PTE_A | PTE_D)) == (physical[i] | PTE_P | PTE_W), "entry %u became %lx", i, shared_table[i]);
}

const struct subject smp_subjects[] = {
    { "smp-start", start_state, ANY }, { "smp-up-down", up_and_down, ANY }, { "smp-forgotten", forgotten, ANY }, { "smp-ipis", ipis, ANY },
    { "smp-tlbs", tlbs, PAGED }, { "smp-bits", bits_together, PAGED }, { 0, 0, 0 },
};
