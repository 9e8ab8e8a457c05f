/* Runs a piece of code in ring 1 or 3 until it traps, and brings back what the trap saw. */
#include "guest.h"

static struct { struct run *run; reg_t stack; } current[MAX_CPUS];

void run_enter(struct trap *t, reg_t *stack);
extern const uint8_t run_back[];

/* run_enter saves what C expects to keep, copies the struct trap to the stack and leaves through the end of every
   interrupt. The way back is another interrupt's end, with run_back as its ip and the saved stack pointer in cx. */
asm(".pushsection .text\n"
    "run_enter: mov 4(%esp), %eax; mov 8(%esp), %edx; push %ebp; push %ebx; push %esi; push %edi; push %gs\n"
    "   mov %esp, (%edx); sub $76, %esp; mov %eax, %esi; mov %esp, %edi; mov $19, %ecx; cld; rep movsl\n"
    "   jmp trap_return\n"
    "run_back: mov %ecx, %esp; pop %gs; pop %edi; pop %esi; pop %ebx; pop %ebp; ret\n"
    ".popsection");
_Static_assert(sizeof(struct trap) == 76, "run_enter has this number");

void run_code(struct run *r)
{
    uint32_t me = cpu_index();
    check(!current[me].run, "CPU %u: run_code() within run_code()", me);
    reg_t flags = irq_save();
    current[me].run = r;
    run_enter(&r->t, &current[me].stack);
    current[me].run = 0;
    irq_restore(flags);
}

void leave_code(struct trap *t)
{
    uint32_t me = cpu_index();
    struct run *r = current[me].run;
    if (!r)
        unexpected_trap(t);
    r->t = *t;
    r->cr2 = fault_address();
    if (!(t->cs & 2)) {                                 /* from ring 1 to ring 1 the stack is not in the frame */
        r->t.sp = (reg_t)&t->sp;
        r->t.ss = SEL_KDATA;
    }
    t->cx = current[me].stack;
    t->ip = (reg_t)run_back;
    t->cs = SEL_KCODE;
    t->flags = 2;                                       /* interrupts stay off: run_code() knows how they were */
}

void catch(uint32_t vector)
{
    on_vector(vector, leave_code);
}

uint8_t *user_page(void)
{
    static uint32_t next;
    reg_t address = FREE_VA + 0xC000000 + __atomic_fetch_add(&next, PAGE_SIZE, __ATOMIC_SEQ_CST);
    map_page(address, pa(alloc_page()), PTE_W | PTE_U);
    return (uint8_t *)address;
}
