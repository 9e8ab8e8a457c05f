/* Memory: what multiboot says there is, single pages to hand out, and the page tables of the one address space. */
#include "guest.h"

extern char image_end[];
bool has_nx;
uint64_t memory_bytes;
char command_line[256];
uint32_t scale = 1;

static struct lock page_lock, table_lock;
static uintptr_t next_page, end_of_memory;
static void *free_list;                                 /* each free page holds the address of the next one */

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
    end_of_memory = end > 0xC0000000u ? 0xC0000000u : (uintptr_t)end & ~(uintptr_t)(PAGE_SIZE - 1);
    next_page = (uintptr_t)image_end;
    has_nx = sizeof(reg_t) == 8 && cpuid(0x80000000u, 0).eax > 0x80000000u && cpuid(0x80000001u, 0).edx >> 20 & 1;
}

void *alloc_pages(uint32_t n)
{
    reg_t flags = irq_save();
    lock(&page_lock);
    uintptr_t page = next_page;
    bool enough = end_of_memory - next_page >= (uintptr_t)n * PAGE_SIZE;
    if (enough)
        next_page += (uintptr_t)n * PAGE_SIZE;
    unlock(&page_lock);
    irq_restore(flags);
    check(enough, "out of memory: %u more pages wanted", n);
    return memset((void *)page, 0, (size_t)n * PAGE_SIZE);
}

void *alloc_page(void)
{
    reg_t flags = irq_save();
    lock(&page_lock);
    void *page = free_list;
    if (page)
        free_list = *(void **)page;
    unlock(&page_lock);
    irq_restore(flags);
    return page ? memset(page, 0, PAGE_SIZE) : alloc_pages(1);
}

void free_page(void *page)
{
    reg_t flags = irq_save();
    lock(&page_lock);
    *(void **)page = free_list;
    free_list = page;
    unlock(&page_lock);
    irq_restore(flags);
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

/* ---- the words of the command line ---- */

static const char *find_word(const char *name, bool with_value)
{
    size_t n = strlen(name);
    for (const char *p = command_line; *p; p++)
        if ((p == command_line || p[-1] == ' ') && !memcmp(p, name, n))
            if (with_value ? p[n] == '=' : p[n] == 0 || p[n] == ' ')
                return p + n + (with_value ? 1 : 0);
    return 0;
}

bool option(const char *word) { return find_word(word, false) != 0; }
const char *option_text(const char *name) { return find_word(name, true); }

uint32_t option_number(const char *name, uint32_t otherwise)
{
    const char *p = find_word(name, true);
    if (!p)
        return otherwise;
    uint32_t v = 0, base = 10;
    if (p[0] == '0' && p[1] == 'x') {
        base = 16;
        p += 2;
    }
    for (; *p && *p != ' '; p++) {
        uint32_t d = *p >= '0' && *p <= '9' ? (uint32_t)(*p - '0') : *p >= 'a' && *p <= 'f' ? (uint32_t)(*p - 'a' + 10) : 99;
        check(d < base, "%s= on the command line is not a number", name);
        v = v * base + d;
    }
    return v;
}

bool option_is(const char *name, const char *text)
{
    const char *p = find_word(name, true);
    size_t n = strlen(text);
    return !p || (!memcmp(p, text, n) && (p[n] == 0 || p[n] == ' '));
}
