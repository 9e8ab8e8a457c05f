/* GDT, TSS and IDT. */
#include "guest.h"

struct gate {
#ifdef __x86_64__
    uint16_t offset0, selector;
    uint8_t ist, type;
    uint16_t offset1;
    uint32_t offset2, reserved;
#else
    uint16_t offset0, selector;
    uint8_t zero, type;
    uint16_t offset1;
#endif
} __attribute__((packed));

struct table_pointer { uint16_t limit; reg_t base; } __attribute__((packed));

extern char trap_stubs[];
void load_gdt(const struct table_pointer *p);

static struct gate idt[256] __attribute__((aligned(16)));

void setup_cpu_tables(struct cpu *c)
{
    uint64_t *gdt = c->m.gdt;
    gdt[SEL_KCODE / 8]   = segment(0, 0xFFFFF, 0x9A, sizeof(reg_t) == 8 ? 0xA : 0xC);
    gdt[SEL_KDATA / 8]   = segment(0, 0xFFFFF, 0x92, 0xC);
    gdt[SEL_UCODE32 / 8] = segment(0, 0xFFFFF, 0xFA, 0xC);
    gdt[SEL_UDATA / 8]   = segment(0, 0xFFFFF, 0xF2, 0xC);
    gdt[SEL_UCODE64 / 8] = segment(0, 0xFFFFF, 0xFA, 0xA);
    gdt[SEL_UDATA2 / 8]  = segment(0, 0xFFFFF, 0xF2, 0xC);
    gdt[SEL_PERCPU / 8]  = segment((uint32_t)(uintptr_t)c, 0xFFFFF, 0x92, 0xC);  /* below 4 GB, so this does for both modes */
    gdt[SEL_TSS / 8]     = segment((uint32_t)(uintptr_t)&c->m.tss, sizeof c->m.tss - 1, 0x89, 0);

    memset(&c->m.tss, 0, sizeof c->m.tss);
    memset(c->m.tss.iomap, 0xFF, sizeof c->m.tss.iomap);
    c->m.tss.iomap_base = offsetof(struct tss, iomap);
#ifdef __x86_64__
    c->m.tss.rsp[0] = (uintptr_t)c->stack_top - STACK_SIZE / 2;   /* ring 3 is left on the lower half of the stack, so that
                                                                   what runs above it in ring 0 stays intact */
    for (int i = 0; i < 3; i++)
        c->m.tss.ist[i] = (uintptr_t)alloc_page() + PAGE_SIZE;
#else
    c->m.tss.esp0 = (uintptr_t)c->stack_top - STACK_SIZE / 2;
    c->m.tss.ss0 = SEL_KDATA;
#endif
    struct table_pointer gdt_pointer = { sizeof c->m.gdt - 1, (uintptr_t)gdt }, idt_pointer = { sizeof idt - 1, (uintptr_t)idt };
    load_gdt(&gdt_pointer);
    asm volatile("ltr %w0" : : "r"(SEL_TSS));
    asm volatile("lidt %0" : : "m"(idt_pointer));
}

void idt_raw(uint32_t vector, const void *gate) { memcpy(&idt[vector], gate, sizeof idt[vector]); }

void idt_gate(uint32_t vector, uint32_t dpl, uint32_t ist)
{
    uintptr_t stub = (uintptr_t)trap_stubs + 16 * vector;
    struct gate g = { .offset0 = (uint16_t)stub, .selector = SEL_KCODE, .type = (uint8_t)(0x8E | dpl << 5),
                      .offset1 = (uint16_t)(stub >> 16) };
#ifdef __x86_64__
    g.ist = (uint8_t)ist;
#else
    (void)ist;
#endif
    idt_raw(vector, &g);
}

void setup_idt(void)
{
    for (uint32_t v = 0; v < 256; v++)
        idt_gate(v, 0, v == 8 ? 1 : 0);                 /* a double fault gets a stack of its own (64-bit) */
}
