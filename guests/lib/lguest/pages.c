/* Memory: what boot_params says there is, and the page tables of the one address space. No large pages: a Guest of this
   machine has none. */
#include "guest.h"

extern char image_end[];
bool paging;
__attribute__((weak)) const bool starts_linear = false;

static struct lock table_lock;

/* boot_params lies at physical 0; the compiler must not know. */
static uint32_t boot_word(uint32_t offset)
{
    asm("" : "+r"(offset));
    uint32_t v;
    memcpy(&v, va(offset), 4);
    return v;
}

void setup_memory(void)
{
    memory_bytes = boot_word(0x2D0 + 8);                /* the only e820 entry: its size */
    const char *from = va(boot_word(0x228));
    for (size_t i = 0; i < sizeof command_line - 1 && boot_word(0x228) && from[i]; i++)
        command_line[i] = from[i];
    uint32_t initrd = boot_word(0x218);
    give_memory((uintptr_t)image_end, (uintptr_t)va(initrd ? initrd : (uint32_t)memory_bytes));
}

/* All memory, and the 256 pages that may be devices'. */
void setup_paging(void)
{
    for (uint32_t at = 0; at < memory_bytes + 0x100000; at += PAGE_SIZE)
        *pte_of((reg_t)va(at), true) = at | PTE_P | PTE_W;
    hypercall1(NEW_PGTABLE, pa(page_root));
    paging = true;
}

reg_t *pte_of(reg_t address, bool create)
{
    reg_t flags = irq_save();
    lock(&table_lock);
    reg_t *entry = &page_root[address >> 22];
    bool linked = false;
    if (!(*entry & PTE_P) && create) {
        reg_t *below = alloc_page();
        compiler_barrier();                             /* other CPUs may walk here at any time: fill first, link then */
        *(volatile reg_t *)entry = pa(below) | PTE_P | PTE_W | PTE_U;
        linked = paging;
    }
    reg_t *found = *entry & PTE_P ? (reg_t *)va(*entry & ~0xFFFul) + (address >> 12 & 0x3FF) : 0;
    unlock(&table_lock);
    irq_restore(flags);
    if (linked)
        hypercall2(SET_PGD, pa(page_root), address >> 22);
    return found;
}

static void set(reg_t address, reg_t value)
{
    check(paging, "a page at %lx, but this guest runs without page tables", address);
    *(volatile reg_t *)pte_of(address, true) = value;
    drop_page((void *)address);
}

void map_page(reg_t address, reg_t physical, reg_t flags) { set(address, physical | flags | PTE_P); }
void unmap_page(reg_t address) { set(address, 0); }

/* SET_PTE says what the entry holds now, of any address: that is INVLPG here. */
void drop_page(const volatile void *p)
{
    reg_t *entry = pte_of((reg_t)p, false);
    hypercall3(SET_PTE, pa(page_root), (uint32_t)(uintptr_t)p, entry ? *(volatile reg_t *)entry : 0);
}

void drop_all_pages(void) { hypercall1(FLUSH_TLB, 1); }
