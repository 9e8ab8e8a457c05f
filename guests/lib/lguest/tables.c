/* GDT and IDT: the Guest never has them in memory, it tells them to the Host entry by entry. */
#include "guest.h"

extern uint8_t trap_stubs[];

void gdt_set(uint32_t entry, uint64_t descriptor)
{
    hypercall3(LOAD_GDT_ENTRY, entry, (uint32_t)descriptor, (uint32_t)(descriptor >> 32));
}

void idt_set(uint32_t vector, const void *entry, uint32_t dpl, uint32_t type)
{
    uint32_t offset = (uint32_t)(uintptr_t)entry;
    hypercall3(LOAD_IDT_ENTRY, vector, SEL_KCODE << 16 | (offset & 0xFFFF), (offset & 0xFFFF0000) | 0x8000 | dpl << 13 | type << 8);
}

void idt_gate(uint32_t vector, uint32_t dpl, uint32_t type) { idt_set(vector, trap_stubs + 16 * vector, dpl, type); }

void setup_cpu_tables(struct cpu *c)
{
    gdt_set(SEL_UCODE32 / 8, segment(0, 0xFFFFF, 0xFA, 0xC));
    gdt_set(SEL_UDATA / 8, segment(0, 0xFFFFF, 0xF2, 0xC));
    gdt_set(SEL_PERCPU / 8, segment((uint32_t)(uintptr_t)c, 0xFFFFF, 0xB2, 0xC));
    asm volatile("mov %0, %%fs" : : "r"(SEL_PERCPU) : "memory");        /* from here on this_cpu() works */

    /* Interrupt gates: an exception arrives with interrupts off, as it does on a PC. Vectors from 64 on cannot come at all,
       but for END: `int n` reaches no gate but 0x80, and that only if it is a trap gate. */
    for (uint32_t v = 0; v < VECTOR_IRQ0 + IRQS; v++)
        idt_gate(v, v == 3 || v == 4 ? 3 : 0, GATE_INTERRUPT);
    idt_gate(END, 3, GATE_TRAP);
    /* Ring 3 is left on the lower half of the stack, so that what runs above it in ring 1 stays intact. */
    hypercall3(SET_STACK, SEL_KDATA, (uint32_t)(uintptr_t)c->stack_top - STACK_SIZE / 2, 2);
}
