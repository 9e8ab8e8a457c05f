/* Runs a piece of code in ring 0 or 3 until it traps, and brings back what the trap saw. */
#include "guest.h"

static struct { struct run *run; reg_t stack; } current[MAX_CPUS];

void run_enter(struct trap *t, reg_t *stack);
extern const uint8_t run_back[];

/* run_enter saves what C expects to keep, copies the struct trap to the stack and leaves through the end of every
   interrupt. The way back is another interrupt's end, with run_back as its ip and the saved stack pointer in cx. */
asm(".pushsection .text\n"
#ifdef __x86_64__
    "run_enter: pushf; cli; push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
    "   mov %rsp, (%rsi); sub $208, %rsp; mov %rdi, %rsi; mov %rsp, %rdi; mov $26, %ecx; cld; rep movsq\n"
    "   testb $3, 176(%rsp); jnz trap_return\n"
    "   mov %rsp, 192(%rsp); movq $0x10, 200(%rsp); jmp trap_return\n"
    "run_back: mov %rcx, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; popf; ret\n"
#else
    "run_enter: mov 4(%esp), %eax; mov 8(%esp), %edx; pushf; cli; push %ebp; push %ebx; push %esi; push %edi\n"
    "   mov %esp, (%edx); sub $76, %esp; mov %eax, %esi; mov %esp, %edi; mov $19, %ecx; cld; rep movsl\n"
    "   jmp trap_return\n"
    "run_back: mov %ecx, %esp; pop %edi; pop %esi; pop %ebx; pop %ebp; popf; ret\n"
#endif
    ".popsection");
_Static_assert(sizeof(struct trap) == (sizeof(reg_t) == 8 ? 208 : 76) && SEL_KDATA == 0x10, "run_enter has these numbers");

void run_code(struct run *r)
{
    uint32_t me = cpu_index();
    check(!current[me].run, "CPU %u: run_code() within run_code()", me);
    current[me].run = r;
    run_enter(&r->t, &current[me].stack);
    current[me].run = 0;
}

void leave_code(struct trap *t)
{
    uint32_t me = cpu_index();
    struct run *r = current[me].run;
    if (!r)
        unexpected_trap(t);
    r->t = *t;
    r->cr2 = fault_address();
    if (sizeof(reg_t) == 4 && !(t->cs & 3)) {           /* from ring 0 to ring 0 the stack is not in the frame */
        r->t.sp = (reg_t)&t->sp;
        r->t.ss = SEL_KDATA;
    }
    t->cx = current[me].stack;
    t->ip = (reg_t)run_back;
    t->cs = SEL_KCODE;
    t->flags = 2;
#ifdef __x86_64__
    t->sp = current[me].stack;
    t->ss = SEL_KDATA;
#endif
}

void catch(uint32_t vector)
{
    if (vector == END)
        idt_gate(END, 3, 0);
    on_vector(vector, leave_code);
}

uint8_t *user_page(void)
{
    static uint32_t next;
    reg_t va = FREE_VA + 0xC000000 + __atomic_fetch_add(&next, PAGE_SIZE, __ATOMIC_SEQ_CST);
    map_page(va, (reg_t)alloc_page(), PTE_W | PTE_U);
    return (uint8_t *)va;
}
