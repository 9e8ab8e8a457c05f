/* Processes: ring 3 with tables of their own, system calls by direct trap, fork with copy-on-write. */
#include "abi.h"

#define CODE 0x48048000u                                /* above all memory that this test is given */
#define DATA 0x48050000u
#define STACK 0x4A000000u                               /* grows down from here */
enum { PAGES = 8, ROUNDS = 200, SYS_YIELD = 1, SYS_EXIT = 2 };

/* Each process counts in all of its pages, hands over, and says at the end what it has. ebx: what it adds, ecx: rounds. */
extern const uint8_t program[], program_end[];
asm(".pushsection .text\n"
    "program: mov $0x48050000, %edi; mov $8, %edx\n"
    "1: add %ebx, (%edi); add $4096, %edi; dec %edx; jnz 1b\n"
    "   push %ecx; mov $1, %eax; int $0x80; pop %ecx\n"
    "   dec %ecx; jnz program\n"
    "   mov 0x48050000, %ebx; mov $2, %eax; int $0x80; ud2\n"
    "program_end: .popsection");

struct process {
    reg_t *root;
    struct run at;
    bool alive;
    uint32_t says;
};

static uint32_t copies;

static reg_t *entry_of(struct process *p, uint32_t address)
{
    reg_t *directory = &p->root[address >> 22];
    if (!(*directory & PTE_P)) {
        *directory = pa(alloc_page()) | PTE_P | PTE_W | PTE_U;
        hypercall2(SET_PGD, pa(p->root), address >> 22);
    }
    return (reg_t *)va(*directory & ~0xFFFul) + (address >> 12 & 0x3FF);
}

static void set_entry(struct process *p, uint32_t address, reg_t value)
{
    *(volatile reg_t *)entry_of(p, address) = value;
    hypercall3(SET_PTE, pa(p->root), address, value);
}

static void create(struct process *p, uint32_t adds)
{
    memset(p, 0, sizeof *p);
    p->root = alloc_page();
    memcpy(p->root, page_root, PAGE_SIZE);              /* the kernel's half is everybody's */
    uint8_t *code = alloc_page();
    memcpy(code, program, (size_t)(program_end - program));
    set_entry(p, CODE, pa(code) | PTE_P | PTE_U);
    for (uint32_t i = 0; i < PAGES; i++)
        set_entry(p, DATA + i * PAGE_SIZE, pa(alloc_page()) | PTE_P | PTE_W | PTE_U);
    set_entry(p, STACK - PAGE_SIZE, pa(alloc_page()) | PTE_P | PTE_W | PTE_U);
    p->at = ring3(CODE, STACK);
    p->at.t.bx = adds;
    p->at.t.cx = ROUNDS;
    p->alive = true;
}

/* The child has all of the parent's pages, and from now on neither may write to them. */
static void fork(struct process *parent, struct process *child)
{
    *child = *parent;
    child->root = alloc_page();
    memcpy(child->root, page_root, PAGE_SIZE);
    for (uint32_t i = 0; i <= PAGES; i++) {
        uint32_t address = i < PAGES ? DATA + i * PAGE_SIZE : STACK - PAGE_SIZE;
        reg_t shared = *entry_of(parent, address) & ~(reg_t)(PTE_W | PTE_D);
        set_entry(parent, address, shared);
        set_entry(child, address, shared);
    }
    set_entry(child, CODE, *entry_of(parent, CODE));
}

static void copy_on_write(struct process *p)
{
    uint32_t address = (uint32_t)p->at.cr2 & ~0xFFFu;
    bool ours = (address >= DATA && address < DATA + PAGES * PAGE_SIZE) || address == STACK - PAGE_SIZE;
    check(ours && p->at.t.error == (PTE_P | PTE_W | PTE_U), "a process: page fault at %lx, error %lx, ip %lx", p->at.cr2, p->at.t.error, p->at.t.ip);
    uint8_t *copy = alloc_page();
    memcpy(copy, va(*entry_of(p, address) & ~0xFFFul), PAGE_SIZE);
    set_entry(p, address, pa(copy) | PTE_P | PTE_W | PTE_U);
    __atomic_add_fetch(&copies, 1, __ATOMIC_RELAXED);
}

/* Runs it until it yields or ends. */
static void turn(struct process *p)
{
    hypercall1(NEW_PGTABLE, pa(p->root));
    for (;;) {
        run_code(&p->at);
        if (p->at.t.vector == 14) {
            copy_on_write(p);
            continue;
        }
        check(p->at.t.vector == END, "a process: vector %lu at %lx", p->at.t.vector, p->at.t.ip);
        if (p->at.t.ax == SYS_EXIT) {
            p->alive = false;
            p->says = p->at.t.bx;
        }
        break;
    }
    hypercall1(NEW_PGTABLE, pa(page_root));
}

/* Each CPU has its own: two parents that add 1 and 100, and after a third of their life two children each. */
static void processes_here(void *unused)
{
    (void)unused;
    struct process p[6];
    create(&p[0], 1);
    create(&p[1], 100);
    uint32_t n = 2;
    for (uint32_t round = 0; round < ROUNDS + 2; round++) {
        if (round == ROUNDS / 3)
            for (; n < 6; n++)
                fork(&p[n & 1], &p[n]);
        if (round == ROUNDS / 2) {
            p[4].at.t.bx = 7;                           /* it goes on differently: in its own pages only */
            p[5].at.t.bx = 9;
        }
        for (uint32_t i = 0; i < n; i++)
            if (p[i].alive)
                turn(&p[i]);
    }
    check(n == 6, "no children");
    for (uint32_t i = 0; i < 6; i++) {
        check(!p[i].alive, "process %u did not end", i);
        uint32_t adds = i & 1 ? 100 : 1, later = i == 4 ? 7 : i == 5 ? 9 : adds, half = ROUNDS / 2;
        uint32_t wanted = half * adds + (ROUNDS - half) * later;
        check(p[i].says == wanted, "process %u counted to %u instead of %u", i, p[i].says, wanted);
    }
}

static void processes(void)
{
    copies = 0;
    catch(14);
    for (uint32_t i = 0; i < ncpus; i++) {              /* one CPU after the other, then all together */
        if (i)
            run_on(i, processes_here, 0), wait_done(i);
        else
            processes_here(0);
    }
    run_on_all(processes_here, 0);
    on_vector(14, 0);
    check(copies >= 4 * PAGES, "only %u pages were copied on write", copies);
    printf("abi: %u pages copied on write\n", copies);
}

const struct subject user_subjects[] = { { "processes", processes, PAGED }, { 0, 0, 0 } };
