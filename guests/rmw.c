/* rmw: plain read-modify-writes, string instructions and stack work stay exact while interrupts fall in between. */
#include "guest.h"

const char guest_name[] = "rmw";

enum { VECTOR_TIMER = 0x41, VECTOR_STORM = 0x51 };

#ifdef __x86_64__
#define R "r"
#define W "8"
#define SIZE "q"
#else
#define R "e"
#define W "4"
#define SIZE "l"
#endif

/* ---- the storm ---- */

static struct { uint32_t ticks, storms, random; volatile bool on; } __attribute__((aligned(64))) storm[MAX_CPUS];
static uint32_t period_us;

static void arm(uint32_t me)
{
    uint32_t us = 2 + random32(&storm[me].random) % (2 * period_us);
    lapic_timer(TIMER_ONESHOT, VECTOR_TIMER, (uint32_t)mul_div(lapic_khz, us, 1000) + 1, DIVIDE_BY_1);
}

/* One-shot and armed anew at the end: the work makes progress however slow the host is. */
static void handle_timer(struct trap *t)
{
    (void)t;
    uint32_t me = cpu_index();
    storm[me].ticks++;
    lapic_eoi();
    if (!storm[me].on)
        return;
    if (ncpus > 1)
        ipi((me + 1 + random32(&storm[me].random) % (ncpus - 1)) % ncpus, VECTOR_STORM);
    arm(me);
}

static void handle_storm(struct trap *t) { (void)t; storm[cpu_index()].storms++; lapic_eoi(); }

/* ---- 1: arithmetic on memory, and the same on a register ---- */

/* The jumps go nowhere; they end the translator's block, so that interrupts can fall between a carry and its use. */
#define J "jc 9f; 9: "
#define SEQUENCE(S, X)                                                                                      \
    "add" S " %[v], " X "; " J "adc" S " %[v], " X "; " J "rcl" S " $1, " X "; inc" S " " X "; " J          \
    "neg" S " " X "; " J "sbb" S " %[v], " X "; not" S " " X "; rol" S " $3, " X "; " J "xor" S " %[v], " X "; " \
    "dec" S " " X "; " J "rcr" S " $1, " X "; sub" S " $0x11, " X "; " J "adc" S " $0, " X "; or" S " $4, " X "; " \
    "and" S " $-9, " X "; " J "shl" S " $1, " X "; " J "adc" S " $0, " X "; " J "ror" S " $5, " X "; "      \
    "sar" S " $1, " X "; " J "adc" S " %[v], " X "; "
#define EXCHANGES(S) "xadd" S " %[a], %[m]; xchg" S " %[b], %[m]; "

#define ARITHMETIC(S, T)                                                                                    \
    static void arithmetic_##S(uint32_t *random)                                                            \
    {                                                                                                       \
        T m = (T)random32(random), r = m, v, a, b, sum;                                                     \
        for (uint32_t i = 0; i < 100; i++) {                                                                \
            v = (T)((uint64_t)random32(random) << 32 | *random);                                            \
            asm volatile(SEQUENCE(#S, "%[m]") : [m] "+m"(m) : [v] "q"(v) : "cc");                           \
            asm volatile(SEQUENCE(#S, "%[r]") : [r] "+q"(r) : [v] "q"(v) : "cc");                           \
            check(m == r, "CPU %u: arithmetic on memory (%u bits) gave %llx, on a register %llx", cpu_index(), \
                  (uint32_t)(8 * sizeof(T)), (unsigned long long)m, (unsigned long long)r);                 \
            a = v;                                                                                          \
            b = (T)~v;                                                                                      \
            sum = (T)(m + v);                                                                               \
            asm volatile(EXCHANGES(#S) : [m] "+m"(m), [a] "+q"(a), [b] "+q"(b) : : "cc");                   \
            check(m == (T)~v && a == r && b == sum, "CPU %u: xadd or xchg (%u bits) went wrong", cpu_index(), \
                  (uint32_t)(8 * sizeof(T)));                                                               \
            r = m;                                                                                          \
        }                                                                                                   \
    }
ARITHMETIC(b, uint8_t)
ARITHMETIC(w, uint16_t)
ARITHMETIC(l, uint32_t)
#ifdef __x86_64__
ARITHMETIC(q, uint64_t)
#endif

static void arithmetic(uint32_t *random)
{
    arithmetic_b(random);
    arithmetic_w(random);
    arithmetic_l(random);
#ifdef __x86_64__
    arithmetic_q(random);
#endif
    volatile uint32_t counter = 0;
    for (uint32_t i = 0; i < 2000; i++)
        asm volatile("incl %0" : "+m"(counter) : : "cc");
    check(counter == 2000, "CPU %u: 2000 inc on memory counted %u", cpu_index(), counter);
}

/* ---- 2: string instructions, any width, both directions, across pages that are not neighbours in memory ---- */

enum { BUFFER_PAGES = 3, GUARD = 16, GUARD_BYTE = 0xEE, REPEATS = 8 };  /* repeats: more time inside than checking */
static struct { uint8_t *from, *to; } buffers[MAX_CPUS];

static uint8_t pattern(uint32_t seed, uint32_t i) { return (uint8_t)(seed + i * 7 + (i >> 8) * 13); }

#define STRING(op, prefix)                                                                                  \
    static void op(uint32_t width, bool down, reg_t *si, reg_t *di, reg_t *cx, reg_t *ax, bool *zf)         \
    {                                                                                                       \
        uint8_t z = 0;                                                                                      \
        STRING_CASE(1, "b", op, prefix, "cld") STRING_CASE(2, "w", op, prefix, "cld")                       \
        STRING_CASE(4, "l", op, prefix, "cld") STRING_CASE_Q("cld", op, prefix)                             \
        STRING_CASE(1, "b", op, prefix, "std") STRING_CASE(2, "w", op, prefix, "std")                       \
        STRING_CASE(4, "l", op, prefix, "std") STRING_CASE_Q("std", op, prefix)                             \
        *zf = z;                                                                                            \
    }
/* cmp first: CX = 0 must leave ZF alone, so it starts as "equal" */
#define STRING_CASE(w, S, op, prefix, direction)                                                            \
    if (width == w && down == (direction[0] == 's'))                                                        \
        asm volatile(direction "; cmp %%eax, %%eax; " prefix " " #op S "; setz %[z]; cld"                   \
                     : "+S"(*si), "+D"(*di), "+c"(*cx), "+a"(*ax), [z] "=m"(z) : : "memory", "cc");
#ifdef __x86_64__
#define STRING_CASE_Q(direction, op, prefix) STRING_CASE(8, "q", op, prefix, direction)
#else
#define STRING_CASE_Q(direction, op, prefix)
#endif
STRING(movs, "rep")
STRING(stos, "rep")
STRING(lods, "rep")
STRING(cmps, "repe")
STRING(scas, "repne")

static reg_t element(const uint8_t *p, uint32_t width) { reg_t v = 0; memcpy(&v, p, width); return v; }

static void strings(uint32_t *random)
{
    uint32_t me = cpu_index(), widths = sizeof(reg_t) == 8 ? 4 : 3, width = 1u << random32(random) % widths;
    bool down = random32(random) & 1;
    uint32_t n = 1 + random32(random) % (4500 / width), bytes = n * width, seed = random32(random);
    uint8_t *from = buffers[me].from + GUARD + random32(random) % 3000, *to = buffers[me].to + GUARD + random32(random) % 3000;
    uint32_t first = down ? bytes - width : 0;
    reg_t si, di, cx, ax = 0, step = down ? -(reg_t)bytes : bytes;
    bool zf;
#define START (si = (reg_t)from + first, di = (reg_t)to + first, cx = n)
#define WHO "CPU %u: %s, width %u, %u times%s: "
#define ARGS me, what, width, n, down ? ", downwards" : ""
    const char *what = "rep movs";

    for (uint32_t i = 0; i < bytes; i++)
        from[i] = pattern(seed, i);
    memset(to - GUARD, GUARD_BYTE, bytes + 2 * GUARD);
    for (uint32_t again = 0; again < REPEATS; again++) {
        START;
        movs(width, down, &si, &di, &cx, &ax, &zf);
    }
    check(cx == 0 && si == (reg_t)from + first + step && di == (reg_t)to + first + step, WHO "registers at the end are wrong", ARGS);
    for (uint32_t i = 0; i < bytes; i++)
        check(to[i] == pattern(seed, i), WHO "byte %u is %x", ARGS, i, to[i]);
    for (uint32_t i = 1; i <= GUARD; i++)
        check(to[-(int)i] == GUARD_BYTE && to[bytes + i - 1] == GUARD_BYTE, WHO "wrote beyond its end", ARGS);

    what = "repe cmps";
    for (uint32_t again = 0; again < REPEATS; again++) {
        START;
        cmps(width, down, &si, &di, &cx, &ax, &zf);
    }
    check(cx == 0 && zf && si == (reg_t)from + first + step, WHO "equal buffers compared unequal", ARGS);
    uint32_t at = random32(random) % n, at_byte = (down ? n - 1 - at : at) * width;
    to[at_byte] ^= 0x40;
    START;
    cmps(width, down, &si, &di, &cx, &ax, &zf);
    check(cx == n - 1 - at && !zf, WHO "stopped after %u, not %u", ARGS, n - (uint32_t)cx, at + 1);
    check(di == (reg_t)to + at_byte + (down ? -(reg_t)width : width), WHO "edi is wrong", ARGS);
    to[at_byte] ^= 0x40;

    what = "rep lods";
    START;
    lods(width, down, &si, &di, &cx, &ax, &zf);
    check(cx == 0 && si == (reg_t)from + first + step && (width == 4 || !memcmp(&ax, from + (down ? 0 : bytes - width), width))
          && (width != 4 || ax == element(from + (down ? 0 : bytes - 4), 4)), WHO "the last element came out as %lx", ARGS, ax);

    what = "rep stos";
    ax = (reg_t)0xA5C3B491D2E78F60ull + seed;
    memset(to - GUARD, GUARD_BYTE, bytes + 2 * GUARD);
    for (uint32_t again = 0; again < REPEATS; again++) {
        START;
        stos(width, down, &si, &di, &cx, &ax, &zf);
    }
    check(cx == 0 && di == (reg_t)to + first + step, WHO "registers at the end are wrong", ARGS);
    for (uint32_t i = 0; i < bytes; i++)
        check(to[i] == (uint8_t)(ax >> 8 * (i % width)), WHO "byte %u is %x", ARGS, i, to[i]);
    for (uint32_t i = 1; i <= GUARD; i++)
        check(to[-(int)i] == GUARD_BYTE && to[bytes + i - 1] == GUARD_BYTE, WHO "wrote beyond its end", ARGS);

    what = "repne scas";
    memset(to, 0x11, bytes);
    to[at_byte] = 0x77;
    ax = element(to + at_byte, width);
    START;
    scas(width, down, &si, &di, &cx, &ax, &zf);
    check(cx == n - 1 - at && zf, WHO "found it after %u, not %u", ARGS, n - (uint32_t)cx, at + 1);

    what = "overlapping rep movs";                      /* each element becomes the one before it: a fill */
    for (uint32_t i = 0; i < bytes + width; i++)
        to[i] = pattern(seed, i);
    si = (reg_t)to;
    di = (reg_t)to + width;
    cx = n;
    movs(width, false, &si, &di, &cx, &ax, &zf);
    for (uint32_t i = 0; i < bytes + width; i++)
        check(to[i] == pattern(seed, i % width), WHO "byte %u is %x", ARGS, i, to[i]);
}

/* ---- 3: the stack ---- */

struct stack_io { reg_t in[8], out[8]; };

static uint32_t __attribute__((noinline)) deep(uint32_t n, uint32_t seed)
{
    if (!n)
        return seed;
    uint32_t r = deep(n - 1, seed * 3 + n);
    asm volatile("" : "+r"(r));                         /* no tail call: each level comes back */
    return r ^ n;
}

static uint32_t shallow(uint32_t n, uint32_t seed)
{
    uint32_t x = 0;
    for (; n; n--) {
        seed = seed * 3 + n;
        x ^= n;
    }
    return seed ^ x;
}

#define SI "(%%" R "si)"
static void stack(uint32_t *random)
{
    struct stack_io io;
    uint32_t me = cpu_index();
    for (uint32_t i = 0; i < 8; i++)
        io.in[i] = (reg_t)((uint64_t)random32(random) << 32 | *random);

    asm volatile("push" SIZE " 0*" W SI "; push" SIZE " 1*" W SI "; pushw 2*" W SI "; pushw $0x1234; push $-5; push $0x12345678;"
                 "pop" SIZE " 8*" W SI "; pop" SIZE " 9*" W SI "; popw 10*" W SI "; popw 11*" W SI ";"
                 "pop" SIZE " 12*" W SI "; pop" SIZE " 13*" W SI : : "S"(&io) : "memory");
    check(io.out[0] == 0x12345678 && io.out[1] == (reg_t)-5 && (uint16_t)io.out[2] == 0x1234 &&
          (uint16_t)io.out[3] == (uint16_t)io.in[2] && io.out[4] == io.in[1] && io.out[5] == io.in[0],
          "CPU %u: push and pop did not give back what was put", me);

    reg_t flags = (io.in[3] & 0xCD5) | FLAG_IF | 2;     /* all status flags, and DF */
    io.in[3] = flags;
    asm volatile("push" SIZE " 3*" W SI "; popf; pushf; pop" SIZE " 8*" W SI "; cld" : : "S"(&io) : "memory", "cc");
    check((io.out[0] & 0xED5) == (flags & 0xED5), "CPU %u: popf %lx, pushf %lx", me, flags, io.out[0]);

    asm volatile("mov %%" R "sp, 8*" W SI "; mov %%" R "bp, 9*" W SI ";"
                 "enter $64, $3; mov 0(%%" R "bp), %%" R "ax; mov %%" R "ax, 10*" W SI "; mov -3*" W "(%%" R "bp), %%" R "ax;"
                 "sub %%" R "bp, %%" R "ax; mov %%" R "ax, 11*" W SI "; lea 64+3*" W "(%%" R "sp), %%" R "ax; sub %%" R "bp, %%" R "ax;"
                 "mov %%" R "ax, 12*" W SI "; push $1; push $2; leave;"
                 "sub %%" R "sp, 8*" W SI "; mov %%" R "bp, 13*" W SI : : "S"(&io) : "memory", "cc", R "ax");
    check(io.out[2] == io.out[1] && io.out[3] == 0 && io.out[4] == 0 && io.out[0] == 0 && io.out[5] == io.out[1],
          "CPU %u: enter or leave built a wrong frame", me);

    reg_t ax = 0;
    asm volatile("mov %%" R "sp, 8*" W SI "; push $7; push $8; call 1f; jmp 2f; 1: inc %0; ret $2*" W "; 2:"
                 "lea 3f, %%" R "dx; mov %%" R "dx, 9*" W SI "; call *9*" W SI "; jmp 4f; 3: inc %0; ret; 4:"
                 "sub %%" R "sp, 8*" W SI : "+a"(ax) : "S"(&io) : "memory", "cc", R "dx");
    check(ax == 2 && io.out[0] == 0, "CPU %u: call and ret came back wrong", me);
#ifndef __x86_64__
    asm volatile("mov %%esp, 8*4(%%esi); pusha; mov $-1, %%eax; mov %%eax, %%ecx; mov %%eax, %%edx; mov %%eax, %%ebx; mov %%eax, %%edi;"
                 "popa; sub %%esp, 8*4(%%esi); mov %%eax, 9*4(%%esi); mov %%ecx, 10*4(%%esi)"
                 : : "S"(&io), "a"(io.in[4]), "c"(io.in[5]) : "memory", "cc");
    check(io.out[0] == 0 && io.out[1] == io.in[4] && io.out[2] == io.in[5], "CPU %u: pusha and popa did not give back the registers", me);
#endif
    uint32_t depth = 1 + random32(random) % 60, seed = *random;
    check(deep(depth, seed) == shallow(depth, seed), "CPU %u: %u nested calls came to a wrong result", me, depth);
}

/* ---- all of it, on all CPUs, in the storm ---- */

static const struct { const char *name; void (*body)(uint32_t *random); } phases[] = {
    { "read-modify-write", arithmetic }, { "string instructions", strings }, { "push, pop, call, ret, enter", stack },
};
static uint32_t phase, phase_ms, rounds_of[MAX_CPUS];
static struct barrier gate;

static void work(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), random = 31337 + 17 * me + phase;
    this_cpu()->timer_taken = true;
    storm[me].random = 4242 + me;
    storm[me].ticks = storm[me].storms = 0;
    rounds_of[me] = 0;
    barrier(&gate, ncpus);
    storm[me].on = true;
    arm(me);
    uint64_t end = rdtsc() + (uint64_t)phase_ms * tsc_khz;
    do {
        phases[phase].body(&random);
        rounds_of[me]++;
    } while (rdtsc() < end || storm[me].ticks < 10);
    storm[me].on = false;
    lapic_timer(TIMER_MASKED, VECTOR_TIMER, 0, DIVIDE_BY_1);
    barrier(&gate, ncpus);                              /* the others may still send */
    this_cpu()->timer_taken = false;
}

static void flush_tlb(void *unused) { (void)unused; write_cr3(read_cr3()); }

static uint8_t *scattered_pages(reg_t va)
{
    uint8_t *memory = alloc_pages(BUFFER_PAGES);
    for (uint32_t i = 0; i < BUFFER_PAGES; i++)
        map_page(va + i * PAGE_SIZE, (uintptr_t)memory + (BUFFER_PAGES - 1 - i) * PAGE_SIZE, PTE_W);
    return (uint8_t *)va;
}

void guest_main(void)
{
    on_vector(VECTOR_TIMER, handle_timer);
    on_vector(VECTOR_STORM, handle_storm);
    period_us = option_number("period", 25);
    phase_ms = option_number("ms", 500) * scale;
    for (uint32_t i = 0; i < ncpus; i++) {
        buffers[i].from = scattered_pages(FREE_VA + i * 0x10000);
        buffers[i].to = scattered_pages(FREE_VA + i * 0x10000 + 0x8000);
    }
    run_on_all(flush_tlb, 0);
    uint32_t all_rounds = 0, all_ticks = 0, all_storms = 0;
    for (phase = 0; phase < array_size(phases); phase++) {
        if (!option_is("only", phase == 0 ? "rmw" : phase == 1 ? "strings" : "stack"))
            continue;
        uint32_t rounds = 0, ticks = 0, storms = 0;
        run_on_all(work, 0);
        for (uint32_t i = 0; i < ncpus; i++) {
            rounds += rounds_of[i];
            ticks += storm[i].ticks;
            storms += storm[i].storms;
        }
        printf("rmw: %-28s %7u rounds exact in %6u timer interrupts and %6u IPIs\n", phases[phase].name, rounds, ticks, storms);
        all_rounds += rounds;
        all_ticks += ticks;
        all_storms += storms;
    }
    check(all_rounds, "only= names no phase");
    check(ncpus == 1 || all_storms, "no IPI arrived: there was no storm, so nothing was proven");
    pass("%u rounds exact, %u timer interrupts, %u IPIs%s", all_rounds, all_ticks, all_storms, ncpus == 1 ? "; 1 CPU, so only the timer" : "");
}
