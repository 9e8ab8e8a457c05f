/* Memory: what multiboot says there is, and the page tables of the one address space. */
#include "guest.h"

extern char image_end[];
bool has_nx;

static struct lock table_lock;

struct multiboot_info { uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr; };
struct mmap_entry { uint32_t size; uint64_t base, length; uint32_t type; } __attribute__((packed));

void setup_memory(uint32_t magic, reg_t info_address)
{
    const struct multiboot_info *info = (void *)info_address;
    uint64_t base = 0x100000, length = 16 << 20;        /* if nobody tells: 16 MB are there on every machine */
    if (magic == 0x2BADB002) {
        if (info->flags & 1)
            length = (uint64_t)info->mem_upper << 10;
        if (info->flags & 4) {
            const char *from = (void *)(uintptr_t)info->cmdline;
            for (size_t i = 0; i < sizeof command_line - 1 && from[i]; i++)
                command_line[i] = from[i];
        }
        if (info->flags & 64)
            for (uint32_t at = 0; at < info->mmap_length;) {
                const struct mmap_entry *e = (void *)(uintptr_t)(info->mmap_addr + at);
                if (e->type == 1 && e->base <= (uintptr_t)image_end && e->base + e->length > (uintptr_t)image_end) {
                    base = e->base;
                    length = e->length;
                }
                at += e->size + 4;
            }
    }
    memory_bytes = length;
    uint64_t end = base + length;
    give_memory((uintptr_t)image_end, end > 0xC0000000u ? 0xC0000000u : (uintptr_t)end & ~(uintptr_t)(PAGE_SIZE - 1));
    has_nx = sizeof(reg_t) == 8 && cpuid(0x80000000u, 0).eax > 0x80000000u && cpuid(0x80000001u, 0).edx >> 20 & 1;
}

#ifdef __x86_64__
#define LEVELS 4
#define INDEX_BITS 9
#else
#define LEVELS 2
#define INDEX_BITS 10
#endif
#define ENTRIES (1u << INDEX_BITS)
#define PTE_ADDRESS (~(reg_t)0xFFF & ~PTE_NX)

/* Walks down to the 4 KB entry. A large page on the way is split into the small pages it stood for. */
reg_t *pte_of(reg_t va, bool create)
{
    reg_t flags = irq_save();
    lock(&table_lock);
    reg_t *table = page_root, *found = 0;
    for (int level = LEVELS - 1;; level--) {
        reg_t *entry = &table[va >> (12 + INDEX_BITS * level) & (ENTRIES - 1)];
        if (level == 0) {
            found = entry;
            break;
        }
        if (!(*entry & PTE_P) || *entry & PTE_LARGE) {
            if (!create)
                break;
            reg_t *below = alloc_page();
            if (*entry & PTE_P)
                for (uint32_t i = 0; i < ENTRIES; i++)
                    below[i] = ((*entry & ~(reg_t)PTE_LARGE) + ((reg_t)i << (12 + INDEX_BITS * (level - 1))))
                             | (level > 1 ? PTE_LARGE : 0);
            compiler_barrier();                         /* other CPUs may walk here at any time: fill first, link then */
            *(volatile reg_t *)entry = (uintptr_t)below | PTE_P | PTE_W | PTE_U;
        }
        table = (reg_t *)(*entry & PTE_ADDRESS);
    }
    unlock(&table_lock);
    irq_restore(flags);
    return found;
}

void map_page(reg_t va, reg_t pa, reg_t flags)
{
    *(volatile reg_t *)pte_of(va, true) = pa | flags | PTE_P;
    invlpg((void *)va);
}

void unmap_page(reg_t va)
{
    *(volatile reg_t *)pte_of(va, true) = 0;
    invlpg((void *)va);
}
