/* Single pages to hand out, of the memory that the machine says is there. */
#include "guest.h"

uint64_t memory_bytes;

static struct lock page_lock;
static uintptr_t next_page, end_of_memory;
static void *free_list;                                 /* each free page holds the address of the next one */

void give_memory(uintptr_t from, uintptr_t to)
{
    next_page = from;
    end_of_memory = to;
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
