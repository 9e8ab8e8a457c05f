/* How fast the TSC and the APIC timer run. */
#include "guest.h"

uint32_t lapic_khz;

static bool sane(uint64_t khz) { return khz >= 100000 && khz <= 20000000; }

/* 10 ms of PIT channel 2, if there is a PIT at all: its output must be low after loading and go high in time. */
static uint32_t khz_from_pit_once(void)
{
    uint8_t old = inb(0x61);
    outb(0x61, (old & ~2) | 1);                         /* gate on, speaker off */
    outb(0x43, 0xB0);                                   /* channel 2, both bytes, mode 0 */
    outb(0x42, 11932 & 0xFF);
    outb(0x42, 11932 >> 8);
    uint64_t start = rdtsc(), now = start;
    uint32_t khz = 0;
    if (!(inb(0x61) & 0x20)) {
        while (!(inb(0x61) & 0x20) && now - start < 300000000)
            now = rdtsc();
        uint64_t passed = rdtsc() - start;
        if (inb(0x61) & 0x20 && sane(div64(passed, 10)))
            khz = (uint32_t)div64(passed, 10);
    }
    outb(0x61, old);
    return khz;
}

/* A busy host can only make it look faster, so the smallest of three is the best. */
static uint32_t khz_from_pit(void)
{
    uint32_t best = khz_from_pit_once();
    for (int i = 0; i < 2 && best; i++) {
        uint32_t again = khz_from_pit_once();
        if (again && again < best)
            best = again;
    }
    return best;
}

/* Precision does not matter to anybody here: waits are generous, and timer checks measure TSC against APIC themselves. */
void calibrate(void)
{
    uint32_t top = cpuid(0, 0).eax;
    if (top >= 0x15) {
        struct cpuid c = cpuid(0x15, 0);
        if (c.eax && c.ebx && c.ecx && sane(div64((uint64_t)c.ecx / 1000 * c.ebx, c.eax))) {
            tsc_khz = (uint32_t)div64((uint64_t)(c.ecx / 1000) * c.ebx, c.eax);
            tsc_source = "CPUID 15h";
        }
    }
    if (!tsc_khz && cpuid(1, 0).ecx >> 31) {
        uint32_t leaves = cpuid(0x40000000, 0).eax, khz = leaves >= 0x40000010 ? cpuid(0x40000010, 0).eax : 0;
        if (leaves < 0x40001000 && sane(khz)) {
            tsc_khz = khz;
            tsc_source = "hypervisor leaf";
        }
    }
    if (!tsc_khz && (tsc_khz = khz_from_pit()))
        tsc_source = "PIT";

    /* The APIC timer against the TSC, both read as close together as can be. */
    lapic_timer(TIMER_ONESHOT | TIMER_MASKED, VECTOR_TICK, 0xFFFFFFFF, DIVIDE_BY_1);
    uint64_t start = rdtsc();
    uint32_t first = lapic_read(LAPIC_TIMER_COUNT);
    while (rdtsc() - start < 20000000)
        pause();
    uint32_t ticks = first - lapic_read(LAPIC_TIMER_COUNT);
    uint64_t passed = rdtsc() - start;
    lapic_timer(TIMER_ONESHOT | TIMER_MASKED, VECTOR_TICK, 0, DIVIDE_BY_1);

    if (!tsc_khz && ticks) {
        tsc_khz = (uint32_t)div64(passed * 1000000, ticks);  /* guess: the APIC timer runs at 1 GHz, as QEMU's does */
        tsc_source = "APIC timer taken as 1 GHz";
    }
    if (!sane(tsc_khz)) {
        tsc_khz = 2000000;
        tsc_source = "a guess";
    }
    lapic_khz = (uint32_t)div64((uint64_t)ticks * tsc_khz, (uint32_t)passed);
}
