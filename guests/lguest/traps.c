/* Traps: reflected with the frame, error code and interrupt flag that lguest gives them, or taken directly; who may INT n. */
#include "abi.h"

SNIPPET(ud, "ud2");
SNIPPET(divide, "xor %edx, %edx; xor %ecx, %ecx; div %ecx");
SNIPPET(breakpoint, "int3");
SNIPPET(overflow, "mov $0x7fffffff, %eax; inc %eax; into");
SNIPPET(bounds, "mov $5, %eax; push $4; push $1; bound %eax, (%esp); add $8, %esp");
SNIPPET(load_es, "mov %eax, %es");
SNIPPET(load_ss, "mov %eax, %ss");
SNIPPET(do_sti, "sti");
SNIPPET(do_hlt, "hlt");
SNIPPET(do_cli, "cli");
SNIPPET(do_in, "in $0x60, %al");
SNIPPET(read_cr, "mov %cr0, %eax");
SNIPPET(write_cr, "mov %eax, %cr3");
SNIPPET(do_lgdt, "lgdt 0");
SNIPPET(do_ltr, "ltr %ax");
SNIPPET(do_lldt, "lldt %ax");
SNIPPET(do_wrmsr, "xor %ecx, %ecx; wrmsr");
SNIPPET(do_invlpg, "invlpg 0");
SNIPPET(do_clts, "clts");
SNIPPET(int_hypercall, "int $0x1f");
SNIPPET(int_irq, "int $0x20");
SNIPPET(int_other, "int $0x41");
SNIPPET(int_3, ".byte 0xCD, 3");
SNIPPET(nothing, "nop");
SNIPPET(ones, "mov $0x11111111, %ecx; mov $0x22222222, %edx; cpuid; rdtsc");
SNIPPET(own_stack, "mov %esp, %esi; ud2");
SNIPPET(pop_all_flags, "push $0x3202; popf; pushf; pop %eax");

/* What happens with each, in ring 1 and in ring 3. Error code of #GP by INT n: the gate's place in the IDT. */
static const struct example {
    const char *what;
    const uint8_t *code;
    uint32_t eax, vector, error, offset;                /* offset: of the ip in the frame, from the code's begin */
} examples[] = {
    { "UD2", ud, 0, 6, 0, 0 },
    { "division by 0", divide, 0, 0, 0, 4 },
    { "INT3", breakpoint, 0, 3, 0, 1 },
    { "INT 3 in two bytes", int_3, 0, 3, 0, 2 },
    { "INTO", overflow, 0, 4, 0, 7 },
    { "BOUND", bounds, 0, 5, 0, 9 },
    { "a selector beyond the GDT", load_es, 0x8008, 13, 0x8008, 0 },
    { "SS = 0", load_ss, 0, 13, 0, 0 },
    { "STI", do_sti, 0, 13, 0, 0 },
    { "HLT", do_hlt, 0, 13, 0, 0 },
    { "reading CR0", read_cr, 0, 13, 0, 0 },
    { "writing CR3", write_cr, 0, 13, 0, 0 },
    { "LGDT", do_lgdt, 0, 13, 0, 0 },
    { "LTR", do_ltr, 0x80, 13, 0, 0 },
    { "LLDT", do_lldt, 0, 13, 0, 0 },
    { "WRMSR", do_wrmsr, 0, 13, 0, 2 },
    { "INVLPG", do_invlpg, 0, 13, 0, 0 },
    { "CLTS", do_clts, 0, 13, 0, 0 },
    { "INT 0x20", int_irq, 0, 13, 0x20 * 8 + 2, 0 },
    { "INT 0x41", int_other, 0, 13, 0x41 * 8 + 2, 0 },
    { "nothing but INT 0x80", nothing, 0, END, 0, 3 },
    { "CPUID and RDTSC", ones, 0, END, 0, 16 },
};

static void check_example(const struct example *e, struct run *r)
{
    uint32_t at = r->t.ip, cs = r->t.cs, sp = r->t.sp, ss = r->t.ss, stack_top = (uint32_t)(uintptr_t)this_cpu()->stack_top - STACK_SIZE / 2;
    r->t.ax = e->eax;
    run_to_trap(r, e->vector, e->error, e->what);
    check(r->t.ip == at + e->offset, "%s: ip is %lx, %ld behind the code, instead of %u", e->what, r->t.ip, r->t.ip - at, e->offset);
    check(r->t.cs == cs, "%s: cs is %lx instead of %x", e->what, r->t.cs, cs);
    check(r->t.flags & FLAG_IF, "%s: flags %lx in the frame, but interrupts were on", e->what, r->t.flags);
    if (cs & 2) {
        /* ss, esp, flags, cs, ip and perhaps the error code, from the top that SET_STACK said */
        check(r->t.sp == sp - (e->code == bounds ? 8 : 0), "%s: sp is %lx instead of %x", e->what, r->t.sp, sp);
        check(r->t.ss == ss, "%s: ss is %lx instead of %x", e->what, r->t.ss, ss);
        (void)stack_top;
    }
}

static void from_ring1(void)
{
    for (uint32_t i = 0; i < array_size(examples); i++) {
        struct run r = ring1(examples[i].code);
        check_example(&examples[i], &r);
    }
}

/* In ring 3 these differ: no emulation, no hypercall, and EFLAGS.IF of the frame is as it was. */
static const struct example more_in_ring3[] = {
    { "CLI", do_cli, 0, 13, 0, 0 },
    { "IN", do_in, 0, 13, 0, 0 },
    { "INT 0x1f", int_hypercall, 0, 13, 0x1F * 8 + 2, 0 },
    { "the kernel's data segment", load_es, SEL_KDATA, 13, SEL_KDATA & ~3, 0 },
};

static uint8_t *code_page, *user_stack;

static void user_pages(void)
{
    if (!code_page) {
        code_page = user_page();
        user_stack = user_page();
    }
}

static void from_ring3(void)
{
    user_pages();
    for (uint32_t i = 0; i < array_size(examples) + array_size(more_in_ring3); i++) {
        const struct example *e = i < array_size(examples) ? &examples[i] : &more_in_ring3[i - array_size(examples)];
        struct run r = ring3(copy_to_user(code_page, e->code, 64), (uint32_t)(uintptr_t)user_stack + PAGE_SIZE - 64);
        check_example(e, &r);
    }
}

/* Where the frame is: on the stack that SET_STACK named (ring 3), or right below the interrupted one's (ring 1). */
static volatile uint32_t frame_at, frame_words;
static void handle_frame(struct trap *t)
{
    frame_at = (uint32_t)(uintptr_t)&t->vector;
    frame_words = t->cs & 2 ? 7 : 5;                    /* with vector and error, which the stub pushed here */
    leave_code(t);
}

static void frames(void)
{
    uint32_t top = (uint32_t)(uintptr_t)this_cpu()->stack_top - STACK_SIZE / 2;
    user_pages();
    static const uint8_t *const codes[] = { ud, nothing, load_es };
    for (uint32_t i = 0; i < 3; i++) {                  /* reflected, direct, reflected with an error code */
        uint32_t vector = i == 0 ? 6 : i == 1 ? END : 13;
        struct run r = ring3(copy_to_user(code_page, codes[i], 64), (uint32_t)(uintptr_t)user_stack + PAGE_SIZE);
        r.t.ax = 0x8008;
        on_vector(vector, handle_frame);
        run_code(&r);
        check(frame_at + 4 * frame_words == top, "vector %u from ring 3: the frame ends at %x instead of %x", vector, frame_at + 4 * frame_words, top);
        on_vector(vector, vector == END ? leave_code : 0);
    }
    struct run r = ring1(own_stack);
    on_vector(6, handle_frame);
    run_code(&r);
    on_vector(6, 0);
    check(frame_at + 4 * frame_words == r.t.si, "a trap in ring 1: the frame ends at %x, sp was %lx", frame_at + 4 * frame_words, r.t.si);
}

/* ---- the interrupt flag: gate types E and F, reflected and direct ---- */

static volatile uint32_t flag_in_handler, flags_in_frame;
static void handle_flag(struct trap *t)
{
    flag_in_handler = my_data()->irq_enabled;
    flags_in_frame = (uint32_t)t->flags;
    t->ip += t->vector == 6 ? 2 : 0;
    if (t->vector == 13)
        leave_code(t);
}

static void one_flag(uint32_t vector, uint32_t type, bool on, uint32_t want_handler, bool want_frame)
{
    struct run r = ring1(vector == 6 ? ud : load_es);
    r.t.ax = 0x8008;
    r.t.flags = on ? 0x202 : 2;
    idt_gate(vector, 0, type);
    on_vector(vector, handle_flag);
    run_code(&r);
    on_vector(vector, 0);
    idt_gate(vector, 0, GATE_INTERRUPT);
    check(!!(flag_in_handler & FLAG_IF) == !!want_handler, "vector %u, gate type %x, interrupts %s: irq_enabled is %x in the handler", vector,
          type, on ? "on" : "off", flag_in_handler);
    check(!!(flags_in_frame & FLAG_IF) == want_frame, "vector %u, gate type %x, interrupts %s: flags %x in the frame", vector, type,
          on ? "on" : "off", flags_in_frame);
}

static void flags(void)
{
    one_flag(6, GATE_INTERRUPT, true, 0, true);         /* reflected: off while it is handled, and the frame knows how it was */
    one_flag(6, GATE_INTERRUPT, false, 0, false);
    one_flag(6, GATE_TRAP, true, 0x200, true);          /* direct: nobody touches irq_enabled, the frame has the CPU's own flags */
    one_flag(6, GATE_TRAP, false, 0, true);
    one_flag(13, GATE_INTERRUPT, true, 0, true);
    one_flag(13, GATE_TRAP, true, 0x200, true);         /* 13 is never direct */
    one_flag(13, GATE_TRAP, false, 0, false);
    struct run r = ring1(pop_all_flags);
    run_to_trap(&r, END, 0, "POPF");
    check((r.t.ax & 0x3200) == 0x200, "POPF in ring 1 changed IF or IOPL: %lx", r.t.ax);
}

/* ---- a trap within a trap's handler, and one within that ---- */

static volatile uint32_t nested;
static void handle_outer(struct trap *t)
{
    nested = nested * 10 + 1;
    asm volatile("int3" : : : "memory");
    nested = nested * 10 + 4;
    t->ip += 2;
}
static void handle_inner(struct trap *t)
{
    (void)t;
    nested = nested * 10 + 2;
    asm volatile("mov $0x8008, %%eax; mov %%eax, %%es" : : : "eax", "memory");
    nested = nested * 10 + 3;
}
static void handle_innermost(struct trap *t)
{
    nested = nested * 10 + 9;
    t->ip += 2;
}

static void within(void)
{
    nested = 0;
    on_vector(6, handle_outer);
    on_vector(3, handle_inner);
    on_vector(13, handle_innermost);
    asm volatile("ud2" : : : "memory");
    on_vector(6, 0);
    on_vector(3, 0);
    on_vector(13, 0);
    check(nested == 12934, "traps within traps came in the order %u", nested);
    check(irqs_on(), "interrupts are off after traps within traps");
}

/* ---- descriptor privilege and presence of gates ---- */

static void gates(void)
{
    user_pages();
    uint32_t sp = (uint32_t)(uintptr_t)user_stack + PAGE_SIZE;
    idt_gate(3, 0, GATE_INTERRUPT);                     /* reflected, and now only for the kernel */
    struct run r = ring3(copy_to_user(code_page, breakpoint, 64), sp);
    run_to_trap(&r, 13, 3 * 8 + 2, "INT3 in ring 3 through a gate of ring 1");
    idt_gate(3, 3, GATE_TRAP);                          /* direct */
    r = ring3((uint32_t)(uintptr_t)code_page, sp);
    run_to_trap(&r, 3, 0, "INT3 in ring 3 through a trap gate");
    idt_gate(3, 3, GATE_INTERRUPT);

    idt_gate(END, 0, GATE_TRAP);                        /* the system call closed to ring 3 */
    r = ring3(copy_to_user(code_page, nothing, 64), sp);
    run_to_trap(&r, 13, END * 8 + 2, "a system call through a gate of ring 1");
    idt_gate(END, 3, GATE_TRAP);

    /* These four are never the Guest's: written, and no difference. */
    static const uint8_t refused[] = { 2, 8, 15, 0x1F };
    for (uint32_t i = 0; i < array_size(refused); i++)
        hypercall3(LOAD_IDT_ENTRY, refused[i], 0, 0x8500);      /* a type that would kill */
    hypercall0(FLUSH_ASYNC);                            /* 0x1f still is the way out */
    r = ring3(copy_to_user(code_page, int_hypercall, 64), sp);
    run_to_trap(&r, 13, 0x1F * 8 + 2, "INT 0x1f in ring 3");
    hypercall3(LOAD_IDT_ENTRY, 200, 0x12345678, 0x500);     /* not present: any type will do */
}

/* Ring 3 without page tables: there is nothing that it may touch. */
static void linear_user(void)
{
    struct run r = ring3((uint32_t)(uintptr_t)nothing, 0x1000);
    run_to_trap(&r, 14, PTE_P | PTE_U, "ring 3 in linear mode");
    check(r.cr2 == (uint32_t)(uintptr_t)nothing, "ring 3 in linear mode: cr2 is %lx", r.cr2);
}

const struct subject trap_subjects[] = {
    { "traps-ring1", from_ring1, ANY }, { "traps-ring3", from_ring3, PAGED }, { "frames", frames, PAGED }, { "flags", flags, ANY },
    { "within", within, ANY }, { "gates", gates, PAGED }, { "linear-user", linear_user, LINEAR }, { 0, 0, 0 },
};
