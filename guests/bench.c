/* bench: what one operation of each kind costs in TSC cycles, on one CPU and on all of them at the same time. */
#include "guest.h"

const char guest_name[] = "bench";

/* The loops, as position-independent functions `void bench_NAME(uint32_t count, void *buffer)`, each with its own symbol
   and size, so that a script can lift one out of the ELF file and run it in a bare engine. Arguments: 32-bit on the stack
   (4(%esp) and 8(%esp)), 64-bit in %edi and %rsi. The buffer has 16 KB and is page-aligned. They use the stack and call
   nothing outside. One count is one operation:
     reg          8 register instructions         movs         rep movs of 4 KB, as dwords
     store, load  8 dwords in one cache line      lock         lock incl of the buffer's first dword
     call         call and return                 lock_shared  the same; the guest gives all CPUs the same buffer
     copy         one dword, load and store       flags        pushf and popf
     matrix       product of 32x32 integers: what a program's loads look like, in C
   (each with the decrement and branch of its loop). */
#ifdef __x86_64__
#define BEGIN "mov %edi, %ecx; mov %rsi, %rdx;"
#define P "%r"
#else
#define BEGIN "mov 4(%esp), %ecx; mov 8(%esp), %edx;"
#define P "%e"
#endif
#define LOOP(name, before, body, after)                                                                               \
    asm(".pushsection .text; .balign 64; .globl bench_" #name "; .type bench_" #name ", @function; bench_" #name ":\n" \
        BEGIN before "\n1: " body "\ndec %ecx; jnz 1b\n" after "\nret\n.size bench_" #name ", . - bench_" #name "; .popsection"); \
    extern void bench_##name(uint32_t count, void *buffer)

LOOP(reg, "mov $1, %eax; mov $3, %edx;",
     "add %edx, %eax; xor $0x55, %eax; lea 7(" P "ax," P "dx), %edx; sub %eax, %edx; rol $3, %eax; and $0x7fffffff, %edx; or $1, %eax; imul %edx, %eax", "");
LOOP(store, "",
     "movl %ecx, (" P "dx); movl %ecx, 8(" P "dx); movl %ecx, 16(" P "dx); movl %ecx, 24(" P "dx);"
     "movl %ecx, 32(" P "dx); movl %ecx, 40(" P "dx); movl %ecx, 48(" P "dx); movl %ecx, 56(" P "dx)", "");
LOOP(load, "",
     "movl (" P "dx), %eax; movl 8(" P "dx), %eax; movl 16(" P "dx), %eax; movl 24(" P "dx), %eax;"
     "movl 32(" P "dx), %eax; movl 40(" P "dx), %eax; movl 48(" P "dx), %eax; movl 56(" P "dx), %eax", "");
LOOP(call, "jmp 1f; 2: inc %eax; ret", "call 2b", "");
LOOP(copy, "push " P "bx", "mov %ecx, %eax; and $1023, %eax; mov (" P "dx," P "ax,4), %ebx; mov %ebx, 4096(" P "dx," P "ax,4)", "pop " P "bx");
LOOP(movs, "push " P "si; push " P "di; mov %ecx, %eax; cld",
     "mov " P "dx, " P "si; lea 4096(" P "dx), " P "di; mov $1024, %ecx; rep movsl; mov %eax, %ecx; dec %eax", "pop " P "di; pop " P "si");
LOOP(lock, "", "lock incl (" P "dx)", "");
LOOP(lock_shared, "", "lock incl (" P "dx)", "");
LOOP(flags, "", "pushf; popf", "");

#define SIDE 32
struct matrices { uint32_t a[SIDE][SIDE], b[SIDE][SIDE], product[SIDE][SIDE]; };
void bench_matrix(uint32_t count, void *buffer)
{
    struct matrices *m = buffer;
    for (; count; count--)
        for (uint32_t i = 0; i < SIDE; i++)
            for (uint32_t j = 0; j < SIDE; j++) {
                uint32_t sum = 0;
                for (uint32_t k = 0; k < SIDE; k++)
                    sum += m->a[i][k] * m->b[k][j];
                m->product[i][j] = sum;
            }
}

static const struct loop {
    const char *name;
    void (*run)(uint32_t count, void *buffer);
    uint32_t count;
    enum { OWN, COUNTED, SHARED } buffer;               /* COUNTED, SHARED: its first dword must come out exact */
} loops[] = {
    { "reg", bench_reg, 10000000, OWN },           { "store", bench_store, 8000000, OWN },
    { "load", bench_load, 8000000, OWN },          { "call", bench_call, 10000000, OWN },
    { "copy", bench_copy, 10000000, OWN },         { "movs", bench_movs, 10000, OWN },
    { "lock", bench_lock, 8000000, COUNTED },      { "lock_shared", bench_lock_shared, 3000000, SHARED },
    { "flags", bench_flags, 2000000, OWN },        { "matrix", bench_matrix, 400, OWN },
};

enum { BUFFER_PAGES = 4 };
static struct { uint8_t *buffer; uint64_t began, ended; } __attribute__((aligned(64))) of[MAX_CPUS];
static uint8_t *shared;
static struct { const struct loop *loop; uint32_t count, cpus; struct barrier gate; } now;

static void measure(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    uint8_t *buffer = now.loop->buffer == SHARED ? shared : of[me].buffer;
    now.loop->run(now.count / 64 + 1, buffer);          /* so that the translation is not in the figure */
    barrier(&now.gate, now.cpus);
    *(volatile uint32_t *)buffer = 0;
    spin_barrier(&now.gate, now.cpus);
    of[me].began = rdtsc();
    now.loop->run(now.count, buffer);
    of[me].ended = rdtsc();
}

static void bench(const struct loop *loop, uint32_t cpus, uint32_t count)
{
    now.loop = loop;
    now.count = count;
    now.cpus = cpus;
    run_on_first(cpus, measure, 0);
    uint64_t began = of[0].began, ended = of[0].ended;
    for (uint32_t i = 0; i < cpus; i++) {
        began = of[i].began < began ? of[i].began : began;
        ended = of[i].ended > ended ? of[i].ended : ended;
        if (loop->buffer == COUNTED)
            check(*(uint32_t *)of[i].buffer == count, "%s: CPU %u counted %u of %u", loop->name, i, *(uint32_t *)of[i].buffer, count);
    }
    if (loop->buffer == SHARED)
        check(*(uint32_t *)shared == count * cpus, "%s: %u of %u counted", loop->name, *(uint32_t *)shared, count * cpus);
    printf("bench %s cpus=%u ops=%llu cycles=%llu\n", loop->name, cpus, (unsigned long long)count * cpus, (unsigned long long)(ended - began));
}

/* only=reg,store */
static bool wanted(const char *name)
{
    const char *p = option_text("only");
    size_t n = strlen(name);
    if (!p)
        return true;
    for (; *p && *p != ' '; p++)
        if (!memcmp(p, name, n) && (p[-1] == '=' || p[-1] == ',') && (p[n] == ',' || p[n] == ' ' || p[n] == 0))
            return true;
    return false;
}

/* ops= is what all CPUs did together, each the same count; cycles= is from the first start to the last end. */
void guest_main(void)
{
    shared = alloc_pages(BUFFER_PAGES);
    for (uint32_t i = 0; i < ncpus; i++)
        of[i].buffer = alloc_pages(BUFFER_PAGES);
    uint32_t lines = 0;
    for (uint32_t i = 0; i < array_size(loops); i++) {
        if (!wanted(loops[i].name))
            continue;
        uint32_t count = loops[i].count / (option("quick") ? 8 : 1) * scale;
        bench(&loops[i], 1, count);
        if (ncpus > 1)
            bench(&loops[i], ncpus, count);
        lines++;
    }
    check(lines, "only= names no loop");
    pass("%u loops, TSC %u MHz", lines, tsc_khz / 1000);
}
