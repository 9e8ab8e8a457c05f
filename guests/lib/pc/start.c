/* The way up of all CPUs of a PC: the first one by multiboot, the others by INIT-SIPI-SIPI. */
#include "guest.h"

const char machine_name[] = "pc", cpu_id_name[] = "APIC ID", cpu_waking[] = "INIT-SIPI-SIPI";

static uint8_t ap_stacks[MAX_CPUS][STACK_SIZE] __attribute__((aligned(4096)));

extern char trampoline[], trampoline_end[];
extern uint8_t boot_stack_top[];
extern volatile uint32_t ap_stack_top, ap_cpu;
extern uint32_t multiboot_magic, multiboot_info;
void first_cpu(void);
void next_cpu(struct cpu *c);
void setup_memory(uint32_t magic, reg_t info);
void start_cpus(void);

uint32_t cpu_id(void) { return this_cpu()->m.apic_id; }

static void setup_this_cpu(struct cpu *c, uint8_t *stack_top)
{
    c->self = c;
    c->stack_top = stack_top;
    setup_cpu_tables(c);                                /* from here on this_cpu() works */
    if (has_nx)
        wrmsr(0xC0000080, rdmsr(0xC0000080) | 0x800);   /* EFER.NXE */
    lapic_setup();
}

void first_cpu(void)
{
    setup_memory(multiboot_magic, multiboot_info);      /* first: the multiboot data lies in memory we will use */
    setup_idt();
    setup_this_cpu(&cpus[0], boot_stack_top);
    cpus[0].m.apic_id = lapic_read(LAPIC_ID) >> 24;
    cpus[0].online = 1;
    outb(0x21, 0xFF);                                   /* the old PIC stays silent */
    outb(0xA1, 0xFF);
    calibrate();
    read_options();
    sti();
    start_cpus();
    guest_main();
    fail("guest_main returned without a verdict");
}

void next_cpu(struct cpu *c)
{
    setup_this_cpu(c, ap_stacks[c->index] + STACK_SIZE);
    check(lapic_read(LAPIC_ID) >> 24 == c->m.apic_id, "CPU %u: woke with APIC ID %u instead of %u", c->index,
          lapic_read(LAPIC_ID) >> 24, c->m.apic_id);
    c->online = 1;
    sti();
    idle(c);
}

void start_cpus(void)
{
    uint32_t ids[MAX_CPUS];
    const char *source;
    uint32_t found = discover_cpus(ids, MAX_CPUS, &source);
    uint32_t limit = option_number("cpus", MAX_CPUS);   /* cpus=N: leave the others asleep */

    memcpy((void *)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
    for (uint32_t i = 0; i < found && ncpus < limit; i++) {
        if (ids[i] == cpus[0].m.apic_id)
            continue;
        struct cpu *c = &cpus[ncpus];
        c->index = ncpus;
        c->m.apic_id = ids[i];
        ap_cpu = (uint32_t)(uintptr_t)c;
        ap_stack_top = (uint32_t)(uintptr_t)(ap_stacks[c->index] + STACK_SIZE);

        /* MP specification B.4. */
        lapic_icr(c->m.apic_id, ICR_INIT | ICR_ASSERT);
        delay_us(10000);
        for (int twice = 0; twice < 2; twice++) {
            lapic_icr(c->m.apic_id, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
            delay_us(200);
        }
        char what[64];
        snprintf(what, sizeof what, "CPU %u (APIC ID %u) to come up after INIT-SIPI-SIPI", c->index, c->m.apic_id);
        spin_until(c->online, what);
        ncpus++;
    }
    announce(source);
}
