/* The ways to end well, and what the boot parameters say. */
#include "abi.h"

static void power_down(void) { hypercall2(SHUTDOWN, pa("Power down"), REASON_POWEROFF); survived(); }

static uint8_t boot8(uint32_t at) { asm("" : "+r"(at)); return *(volatile uint8_t *)va(at); }
static uint32_t boot32(uint32_t at) { return boot8(at) | (uint32_t)boot8(at + 1) << 8 | (uint32_t)boot8(at + 2) << 16 | (uint32_t)boot8(at + 3) << 24; }

static void boot_params(void)
{
    check(boot8(0x1E8) == 1, "%u e820 entries", boot8(0x1E8));
    check(!boot32(0x2D0) && !boot32(0x2D4) && !boot32(0x2DC) && boot32(0x2E0) == 1, "the e820 entry: at %x, type %u", boot32(0x2D0), boot32(0x2E0));
    check(boot8(0x206) == 7 && boot8(0x207) == 2, "boot protocol %x.%x", boot8(0x207), boot8(0x206));
    check(boot8(0x211) & 0x40, "loadflags %x: no KEEP_SEGMENTS", boot8(0x211));
    check(boot32(0x228) == 0x1000, "the command line is at %x", boot32(0x228));
    check(boot32(0x230) == 0x1000000, "kernel_alignment is %x", boot32(0x230));
    check(boot32(0x23C) == 1, "hardware_subarch is %u", boot32(0x23C));
    uint32_t initrd = boot32(0x218), size = boot32(0x21C), wanted = option_number("initrd", 0);
    check(!!initrd == !!wanted, "an initrd at %x", initrd);
    if (!wanted)
        return;
    check(boot8(0x210) == 0xFF, "type_of_loader is %x", boot8(0x210));
    check(size == ((wanted + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)), "the initrd has %u bytes instead of %u", size, wanted);
    check(initrd == memory_bytes - size, "the initrd is at %x", initrd);
    for (uint32_t i = 0; i < wanted; i++)
        check(boot8(initrd + i) == (uint8_t)(i * 7 + i / 512), "byte %u of the initrd is %x", i, boot8(initrd + i));
    for (uint32_t i = wanted; i < size; i++)
        check(!boot8(initrd + i), "byte %u behind the initrd is %x", i, boot8(initrd + i));
}

/* All memory is there, and was zero. */
static void memory(void)
{
    uint32_t pages = 0;
    uint32_t end = boot32(0x218) ? boot32(0x218) : (uint32_t)memory_bytes;
    for (uint32_t at = pa(alloc_page()) + PAGE_SIZE; at < end; at += PAGE_SIZE, pages++) {
        volatile uint32_t *p = va(at);
        check(p[0] == 0 && p[1023] == 0, "memory at %x was not zero", at);
        p[0] = at;
        p[1023] = ~at;
    }
    for (uint32_t at = end - PAGE_SIZE; pages--; at -= PAGE_SIZE) {
        volatile uint32_t *p = va(at);
        check(p[0] == at && p[1023] == ~at, "memory at %x is %x", at, p[0]);
        p[0] = p[1023] = 0;
    }
}

const struct subject end_subjects[] = {
    { "boot-params", boot_params, ANY }, { "memory", memory, ANY }, { "power-down", power_down, ONLY_BY_NAME }, { 0, 0, 0 },
};
