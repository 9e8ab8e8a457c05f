/* Which CPUs are there: the MP table as the MP specification says, and the ACPI MADT where that names more. */
#include "guest.h"

static bool sums_to_zero(const uint8_t *p, uint32_t n)
{
    uint8_t sum = 0;
    while (n--)
        sum = (uint8_t)(sum + *p++);
    return sum == 0;
}

static const uint8_t *find_signature(uint32_t from, uint32_t bytes, const char *signature, uint32_t length, uint32_t check_bytes)
{
    for (uint32_t at = (from + 15) & ~15u; at + check_bytes <= from + bytes; at += 16)
        if (!memcmp((void *)(uintptr_t)at, signature, length) && sums_to_zero((void *)(uintptr_t)at, check_bytes))
            return (void *)(uintptr_t)at;
    return 0;
}

static uint32_t read16(uint32_t address)
{
    asm("" : "+r"(address));                            /* page 0 is memory here, whatever the compiler thinks of it */
    return *(volatile uint16_t *)(uintptr_t)address;
}
static uint32_t read32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static uint32_t le16(const uint8_t *p) { return p[0] | p[1] << 8; }

/* MP specification 4: first KB of the EBDA, last KB of base memory, the BIOS ROM. */
static const uint8_t *find_in_bios_areas(const char *signature, uint32_t length, uint32_t check_bytes)
{
    uint32_t ebda = read16(0x40E) << 4, base_kb = read16(0x413);
    const uint8_t *p = 0;
    if (ebda >= 0x400 && ebda < 0xA0000)
        p = find_signature(ebda, 1024, signature, length, check_bytes);
    if (!p && base_kb > 0 && base_kb <= 640)
        p = find_signature((base_kb - 1) * 1024, 1024, signature, length, check_bytes);
    if (!p)
        p = find_signature(0xF0000, 0x10000, signature, length, check_bytes);
    return p;
}

static uint32_t add(uint32_t *ids, uint32_t n, uint32_t max, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] == id)
            return n;
    if (n < max)
        ids[n++] = id;
    return n;
}

static uint32_t from_mp_table(uint32_t *ids, uint32_t n, uint32_t max)
{
    const uint8_t *mp = find_in_bios_areas("_MP_", 4, 16);
    if (!mp)
        return n;
    const uint8_t *table = (void *)(uintptr_t)read32(mp + 4);
    if (!table || memcmp(table, "PCMP", 4) || !sums_to_zero(table, le16(table + 4)))
        return n;
    const uint8_t *entry = table + 44, *end = table + le16(table + 4);
    for (uint32_t left = le16(table + 34); left && entry < end; left--) {
        if (entry[0] == 0 && entry[3] & 1)              /* a processor, and usable */
            n = add(ids, n, max, entry[1]);
        entry += entry[0] == 0 ? 20 : 8;
    }
    return n;
}

static uint32_t from_madt(uint32_t *ids, uint32_t n, uint32_t max)
{
    const uint8_t *rsdp = find_in_bios_areas("RSD PTR ", 8, 20);
    if (!rsdp)
        rsdp = find_signature(0xE0000, 0x10000, "RSD PTR ", 8, 20);
    if (!rsdp)
        return n;
    const uint8_t *rsdt = (void *)(uintptr_t)read32(rsdp + 16);
    if (!rsdt || memcmp(rsdt, "RSDT", 4))
        return n;
    for (uint32_t at = 36; at + 4 <= read32(rsdt + 4); at += 4) {
        const uint8_t *madt = (void *)(uintptr_t)read32(rsdt + at);
        if (memcmp(madt, "APIC", 4))
            continue;
        for (uint32_t e = 44; e + 2 <= read32(madt + 4) && madt[e + 1]; e += madt[e + 1])
            if (madt[e] == 0 && madt[e + 4] & 1)        /* a local APIC, and enabled */
                n = add(ids, n, max, madt[e + 3]);
    }
    return n;
}

/* The MP table leads. Some BIOSes name only one CPU a package in it, so the MADT may add the others. */
uint32_t discover_cpus(uint32_t *ids, uint32_t max, const char **source)
{
    uint32_t n = from_mp_table(ids, 0, max), with_madt = from_madt(ids, n, max);
    *source = with_madt == n && n ? "MP table" : n ? "MP table and MADT" : with_madt ? "MADT" : "no table";
    return with_madt;
}
