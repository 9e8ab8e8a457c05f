/* More mistakes that kill: page tables, traps without a handler, the SMP extension, devices. See kills.c. */
#include "abi.h"

#define AT 0xFB400000u
#define SWITCHER 0xFFC00000u

static uint32_t look(void) { return *(volatile uint32_t *)AT; }

static void with_entry(reg_t entry)
{
    *(volatile reg_t *)pte_of(AT, true) = entry;        /* not told: SET_PTE would have looked at it */
    expect_kill("bad page table entry");
    look();
    survived();
}
static void pte_high(void) { with_entry(0xF0000000 | PTE_P | PTE_W); }
static void pte_limit(void) { with_entry(((uint32_t)memory_bytes + 0x100000) | PTE_P | PTE_W); }
static void pte_large(void) { with_entry(pa(page_root) | PTE_P | PTE_W | PTE_LARGE); }

static void with_directory(reg_t bits)
{
    pte_of(AT, true);
    reg_t *entry = &page_root[AT >> 22];
    *entry = (bits >= PAGE_SIZE ? 0 : *entry & ~0xFFFul) | bits;
    hypercall1(FLUSH_TLB, 1);
    expect_kill("bad page directory entry");
    look();
    survived();
}
static void pde_large(void) { with_directory(PTE_P | PTE_W | PTE_LARGE); }
static void pde_global(void) { with_directory(PTE_P | PTE_W | PTE_G); }
static void pde_uncached(void) { with_directory(PTE_P | PTE_W | 0x10); }
static void pde_high(void) { with_directory(0xF0000000 | PTE_P | PTE_W); }

static void set_pte_bad(void)                           /* in use already, so SET_PTE itself looks at it */
{
    pte_of(AT, true);
    map_page(AT, pa(alloc_page()), PTE_W);
    look();
    expect_kill("bad page table entry");
    hypercall3(SET_PTE, pa(page_root), AT, 0xF0000000 | PTE_P | PTE_W | PTE_A);
    survived();
}

static void set_pte_switcher(void)
{
    expect_kill("attempt to set pte into Switcher pages");
    hypercall3(SET_PTE, pa(page_root), SWITCHER, pa(page_root) | PTE_P);
    survived();
}

static void set_pgd(void)
{
    expect_kill("Attempt to set pgd 1025/1024");
    hypercall2(SET_PGD, pa(page_root), 1025);
    survived();
}

static void root_beyond(void)                           /* a page directory that is not memory */
{
    uint32_t root = (uint32_t)memory_bytes + 0x200000;
    expect_kill("bad read address");                    /* of which entry first depends on who looks first */
    hypercall1(NEW_PGTABLE, root);
    look();
    survived();
}

/* ---- nobody handles it ---- */

SNIPPET(ud, "ud2");
SNIPPET(protection, "mov $0x8008, %eax; mov %eax, %es");
SNIPPET(fpu, "fld1");
SNIPPET(read_nowhere, "mov 0xFB400010, %eax");

static void no_handler(uint32_t vector, const uint8_t *code, uint32_t at, uint32_t value)
{
    hypercall3(LOAD_IDT_ENTRY, vector, 0, 0);
    char number[12];
    snprintf(number, sizeof number, value ? "0x%x" : "%u", value);
    expect_kill("unhandled trap %u at 0x%x (%s)", vector, (uint32_t)(uintptr_t)code + at, number);
    struct run r = ring1(code);
    run_code(&r);
    survived();
}
static void trap_6(void) { no_handler(6, ud, 0, 0); }
static void trap_13(void) { no_handler(13, protection, 5, 0x8008); }
static void trap_14(void) { no_handler(14, read_nowhere, 0, 0xFB400010); }

static void trap_7(void)
{
    hypercall1(TS, 1);
    no_handler(7, fpu, 0, 0);
}

/* ---- the SMP extension ---- */

static void smp(uint32_t call, uint32_t a, uint32_t b)
{
    if (!smp_version)
        fail("no SMP extension here");
    hypercall3(call, a, b, 0);
    survived();
}
static void up_self(void) { expect_kill("Cannot start CPU 0"); smp(CPU_UP, 0, 0x100000); }
static void up_running(void)
{
    uint32_t cpu = ncpus > 1 ? 1 : 0;
    expect_kill("Cannot start CPU %u", cpu);
    smp(CPU_UP, cpu, 0x100000);
}
static void up_none(void) { expect_kill("Cannot start CPU %u", cpuid(0x40000001, 0).ebx); smp(CPU_UP, cpuid(0x40000001, 0).ebx, 0x100000); }
static void up_minus(void) { expect_kill("Cannot start CPU 4294967295"); smp(CPU_UP, 0xFFFFFFFF, 0x100000); }
static void down_0(void) { expect_kill("CPU 0 cannot stop"); smp(CPU_DOWN, 0, 0); }
static void ipi_0(void) { expect_kill("Bad IPI 0 to CPU 0"); smp(SEND_IPI, 0, 0); }
static void ipi_32(void) { expect_kill("Bad IPI 32 to CPU 0"); smp(SEND_IPI, 0, 32); }
static void ipi_nobody(void) { expect_kill("Bad IPI 5 to CPU %u", cpuid(0x40000001, 0).ebx); smp(SEND_IPI, cpuid(0x40000001, 0).ebx, 5); }
static void ipi_32_all(void) { expect_kill("Bad IPI 32 to CPU 4294967295"); smp(SEND_IPI, ALL_OTHER_CPUS, 32); }
static void affinity_irq(void) { expect_kill("Bad affinity of irq 0 to CPU 0"); smp(SET_AFFINITY, 0, 0); }
static void affinity_cpu(void) { expect_kill("Bad affinity of irq 1 to CPU 200"); smp(SET_AFFINITY, 1, 200); }

extern const uint8_t early_hypercall[];
asm(".pushsection .text; early_hypercall: mov $17, %eax; xor %ebx, %ebx; int $0x1f; jmp early_hypercall; .popsection");
static volatile uint32_t down;
static void go_down(void *unused) { (void)unused; hypercall1(CPU_DOWN, pa(&down)); }

static void second_before_init(void)                    /* a started CPU begins with LGUEST_INIT, too */
{
    if (ncpus < 2)
        fail("this needs two CPUs");
    run_on(1, go_down, 0);
    spin_until(down, "CPU 1 to stop");
    expect_kill("hypercall 17 before INIT");
    hypercall3(CPU_UP, 1, pa(early_hypercall), 0);
    delay_us(20000000);
    survived();
}

static void trap_of_second(void *unused)
{
    (void)unused;
    no_handler(6, ud, 0, 0);
}
static void second_trap(void)
{
    if (ncpus < 2)
        fail("this needs two CPUs");
    run_on(1, trap_of_second, 0);
    wait_done(1);
    survived();
}

/* ---- devices ---- */

static void bad_notify(void)
{
    uint32_t beyond = (uint32_t)memory_bytes + 0x200000;
    expect_kill("Bad NOTIFY 0x%x", beyond);
    hypercall1(NOTIFY, beyond);
    survived();
}

static void notify_early(void)
{
    struct device d;
    check(find_device(DEVICE_CONSOLE, 0, &d), "no console");
    expect_kill("before setup!");
    hypercall1(NOTIFY, d.queue[0].physical);
    survived();
}

static void finalised_twice(void)
{
    struct device d;
    check(find_device(DEVICE_CONSOLE, 0, &d), "no console");
    start_device(&d, 0);
    expect_kill("finalized twice");
    hypercall1(NOTIFY, d.physical);
    survived();
}

const struct subject kill_late_subjects[] = {
    { "kill-pte-high", pte_high, PAGED | ONLY_BY_NAME }, { "kill-pte-limit", pte_limit, PAGED | ONLY_BY_NAME },
    { "kill-pte-large", pte_large, PAGED | ONLY_BY_NAME }, { "kill-pde-large", pde_large, PAGED | ONLY_BY_NAME },
    { "kill-pde-global", pde_global, PAGED | ONLY_BY_NAME }, { "kill-pde-uncached", pde_uncached, PAGED | ONLY_BY_NAME },
    { "kill-pde-high", pde_high, PAGED | ONLY_BY_NAME }, { "kill-set-pte", set_pte_bad, PAGED | ONLY_BY_NAME },
    { "kill-set-pte-switcher", set_pte_switcher, ONLY_BY_NAME }, { "kill-set-pgd", set_pgd, ONLY_BY_NAME },
    { "kill-root", root_beyond, PAGED | ONLY_BY_NAME },
    { "kill-trap-6", trap_6, ONLY_BY_NAME }, { "kill-trap-7", trap_7, ONLY_BY_NAME }, { "kill-trap-13", trap_13, ONLY_BY_NAME },
    { "kill-trap-14", trap_14, PAGED | ONLY_BY_NAME },
    { "kill-up-self", up_self, ONLY_BY_NAME }, { "kill-up-running", up_running, ONLY_BY_NAME }, { "kill-up-none", up_none, ONLY_BY_NAME },
    { "kill-up-minus", up_minus, ONLY_BY_NAME }, { "kill-down-0", down_0, ONLY_BY_NAME }, { "kill-ipi-0", ipi_0, ONLY_BY_NAME },
    { "kill-ipi-32", ipi_32, ONLY_BY_NAME }, { "kill-ipi-32-all", ipi_32_all, ONLY_BY_NAME }, { "kill-ipi-nobody", ipi_nobody, ONLY_BY_NAME },
    { "kill-affinity-irq", affinity_irq, ONLY_BY_NAME }, { "kill-affinity-cpu", affinity_cpu, ONLY_BY_NAME },
    { "kill-second-before-init", second_before_init, ONLY_BY_NAME }, { "kill-second-trap", second_trap, ONLY_BY_NAME },
    { "kill-bad-notify", bad_notify, ONLY_BY_NAME }, { "kill-notify-early", notify_early, ONLY_BY_NAME },
    { "kill-finalised-twice", finalised_twice, ONLY_BY_NAME }, { 0, 0, 0 },
};
