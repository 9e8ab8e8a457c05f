/* The C side of every interrupt and exception. */
#include "guest.h"

static handler_t volatile handlers[256];

uint64_t segment(uint32_t base, uint32_t limit, uint32_t access, uint32_t flags)
{
    return (uint64_t)(limit & 0xFFFF) | (uint64_t)(base & 0xFFFFFF) << 16 | (uint64_t)access << 40
         | (uint64_t)(limit >> 16 & 0xF) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

void on_vector(uint32_t vector, handler_t handler) { handlers[vector] = handler; }

_Noreturn void unexpected_trap(struct trap *t)
{
    fail("CPU %u: unexpected vector %lu, error %lx, ip %lx, cs %lx, flags %lx, cr2 %lx", cpu_index(), t->vector, t->error,
         t->ip, t->cs, t->flags, fault_address());
}

void trap_dispatch(struct trap *t)
{
    handler_t h = handlers[t->vector & 0xFF];
    if (!h)
        unexpected_trap(t);
    h(t);
}
