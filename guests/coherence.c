/* coherence: code that one CPU writes and another one runs. Who was told of the change and has serialised (CPUID, IRET)
   must run the new bytes (SDM vol. 3, 8.1.3); who wrote it himself must do so at once (11.6).
   Options: only=jit|reuse|poke|shared|own, rounds=N, and "strict": forgive no machine anything. */
#include "guest.h"

const char guest_name[] = "coherence";

#ifdef __x86_64__
#define R "r"
#else
#define R "e"
#endif

static uint32_t rounds;
static uint32_t total_stale, total_runs;
static char summary[128];                               /* the first stale value, for the verdict */

/* With more CPUs than host cores every hand-over costs time slices, so do fewer. */
static uint64_t patience(void) { return rdtsc() + us_to_tsc(3000000) * scale; }   /* where others never pause, time ends it, too */
static uint32_t for_many(uint32_t n)
{
    n = ncpus > 2 ? n * 4 / (ncpus * ncpus) : n;
    return n < 20 ? 20 : n;
}

/* Value number n, all four bytes of which differ from those of its neighbours; and back. */
static uint32_t value(uint32_t n) { return n * 0x9E3779B1u; }
static uint32_t number(uint32_t v) { return v * 0x0E8B2F51u; }

static struct result {
    volatile uint32_t done, runs, stale, got, want;
} results[MAX_CPUS] __attribute__((aligned(64)));

static void expect(uint32_t got, uint32_t want)
{
    struct result *r = &results[cpu_index()];
    r->runs++;
    if (got == want)
        return;
    if (!r->stale++) {
        r->got = got;
        r->want = want;
    }
}

/* Not every emulator is exact about blocks that are patched while they run; see is_exact(). */
static bool exact = true;

static uint32_t report(const char *what, uint64_t start, bool must)
{
    uint32_t runs = 0, stale = 0;
    for (uint32_t i = 0; i < ncpus; i++) {
        struct result *r = &results[i];
        if (r->stale && must && !summary[0])
            snprintf(summary, sizeof summary, "; first: %s, CPU %u got %x instead of %x", what, i, r->got, r->want);
        runs += r->runs;
        stale += r->stale;
    }
    memset(results, 0, sizeof results);
    printf("coherence: %-44s %8u runs, %u stale%s (%u us)\n", what, runs, stale, must || !stale ? "" : ", not judged here",
           tsc_to_us(rdtsc() - start));
    total_runs += runs;
    if (must)
        total_stale += stale;
    return stale;
}

/* ---- (1), (5), (7): one CPU patches a function, tells the others, they serialise and call it ---- */

/* The function is: mov $value, %eax; ret; nop; nop */
static uint64_t function(uint32_t v) { return 0x9090C300000000B8ull | (uint64_t)v << 8; }

static void by_store(uint8_t *at, uint32_t v) { *(volatile uint32_t *)(at + 1) = v; }

static void by_bytes(uint8_t *at, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        ((volatile uint8_t *)at)[1 + i] = (uint8_t)(v >> 8 * i);
}

static void by_movs(uint8_t *at, uint32_t v)
{
    uint64_t f = function(v);
    memcpy(at, &f, 8);
}

static uint64_t page_image[PAGE_SIZE / 8];
static void by_movs_page(uint8_t *at, uint32_t v)
{
    const void *from = page_image;
    size_t n = PAGE_SIZE / 4;
    for (uint32_t i = 0; i < PAGE_SIZE / 8; i++)
        page_image[i] = function(v);
    asm volatile("rep movsl" : "+D"(at), "+S"(from), "+c"(n) : : "memory");
}

static void by_stosb(uint8_t *at, uint32_t v) { memset(at + 1, (int)(v & 0xFF), 4); }

static void by_stos_page(uint8_t *at, uint32_t v)       /* mov $v, %al; ret; nop */
{
    size_t n = PAGE_SIZE / 4;
    asm volatile("rep stosl" : "+D"(at), "+c"(n) : "a"(0x90C300B0u | (v & 0xFF) << 8) : "memory");
}

static void by_xchg(uint8_t *at, uint32_t v) { __atomic_exchange_n((uint32_t *)(at + 1), v, __ATOMIC_SEQ_CST); }

static void by_cmpxchg(uint8_t *at, uint32_t v)
{
    uint32_t old = *(volatile uint32_t *)(at + 1);
    __atomic_compare_exchange_n((uint32_t *)(at + 1), &old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void by_xadd(uint8_t *at, uint32_t v)
{
    uint32_t add = v - *(volatile uint32_t *)(at + 1);
    asm volatile("lock xaddl %0, %1" : "+r"(add), "+m"(*(uint32_t *)(at + 1)) : : "memory", "cc");
}

static void by_cmpxchg8b(uint8_t *at, uint32_t v)
{
    uint32_t low = ((volatile uint32_t *)at)[0], high = ((volatile uint32_t *)at)[1];
    uint64_t f = function(v);
    asm volatile("lock cmpxchg8b %2" : "+a"(low), "+d"(high), "+m"(*(uint64_t *)at)
                 : "b"((uint32_t)f), "c"((uint32_t)(f >> 32)) : "memory", "cc");
}

static void by_fistp(uint8_t *at, uint32_t v)           /* 8 bytes by the FPU */
{
    uint64_t f = function(v);
    asm volatile("fninit; fildll %1; fistpll %0" : "=m"(*(uint64_t *)at) : "m"(f) : "memory");
}

static void by_push(uint8_t *at, uint32_t v)
{
    reg_t flags = irq_save(), what = sizeof(reg_t) == 8 ? (reg_t)function(v) : v;
    uint8_t *stack = at + (sizeof(reg_t) == 8 ? 8 : 5);
    asm volatile("xchg %0, %%" R "sp; push %1; xchg %0, %%" R "sp" : "+r"(stack) : "r"(what) : "memory");
    irq_restore(flags);
}

/* Eight bytes over the border of two pages: mov $low, %al; ret; nop on either side of it. */
static void by_fistp_across(uint8_t *at, uint32_t v)
{
    uint64_t f = 0x90C300B090C300B0ull | (uint64_t)(v & 0xFF) << 8 | (uint64_t)(v >> 8 & 0xFF) << 40;
    asm volatile("fninit; fildll %1; fistpll %0" : "=m"(*(uint64_t *)at) : "m"(f) : "memory");
}

static uint32_t call(const uint8_t *at)
{
    uint32_t v = 0;
    asm volatile("call *%1" : "+a"(v) : "D"(at) : "memory", "cc");
    return v;
}

/* CPUID and then straight on: nothing of the compiler's between it and the call. */
static uint32_t serialise_and_call(const uint8_t *at)
{
    uint32_t v = 0;
    asm volatile("cpuid; mov $0, %%eax; call *%1" : "+a"(v) : "D"(at) : "ebx", "ecx", "edx", "memory", "cc");
    return v;
}

static uint32_t anywhere_in_page(const uint8_t *at)
{
    static uint32_t random = 5;
    return serialise_and_call(at + random32(&random) % (PAGE_SIZE / 8) * 8);
}

static uint32_t both_sides(const uint8_t *at)
{
    return serialise_and_call(at) | serialise_and_call(at + 4) << 8;
}


/* Blocks that run straight into the function. The first waits for the flag itself (%ecx: how often it may still look).
   The second says that it has begun (in %ecx's place in memory), takes its time, looks at the flag, serialises and runs
   the patched instruction, all without a jump. */
extern const uint8_t wait_block[], wait_block_end[], look_block[], look_block_end[];
asm(".pushsection .text\n"
    "wait_block: cmp %esi, (%" R "di); je 1f; pause; dec %ecx; jnz wait_block; ret\n"
    "1: push %" R "cx; cpuid; pop %" R "cx\n"
    "wait_block_end:\n"
    "look_block: movl $1, (%" R "si)\n"
    ".rept 60; mov (%" R "dx), %eax; .endr\n"
    "mov (%" R "di), %esi; cpuid\n"
    "look_block_end:\n"
    ".popsection");

static volatile uint32_t turn __attribute__((aligned(64)));     /* the last patch that is complete */
static volatile uint32_t begun __attribute__((aligned(64)));    /* an executor is in its block, or in its loop */

enum wait_for { FLAG, CODE, WAIT_BLOCK, LOOK_BLOCK, NOTHING };  /* what tells the executor that there is a new patch */
static struct plan {
    const char *name;
    void (*patch)(uint8_t *at, uint32_t v);
    uint32_t (*run)(const uint8_t *at);
    enum wait_for wait_for;
    uint32_t mask, offset;                              /* what comes back of the value; where in the two pages */
    uint8_t *write, *execute;                           /* the two pages as the patcher and the executors see them */
    uint32_t patcher, executors, rounds;
} plan;

static uint32_t run_block(const uint8_t *at, uint32_t *count, reg_t *si)
{
    reg_t a = (reg_t)at, c = *count, d = (reg_t)slow_word();     /* so that it takes its time */
    asm volatile("call *%%" R "ax" : "+a"(a), "+c"(c), "+d"(d), "+S"(*si) : "D"(&turn) : "ebx", "memory", "cc");
    *count = (uint32_t)c;
    return (uint32_t)a;
}

/* At least patch `from` and not from the future; `turn` may lag behind by the patch that is being made. */
static void expect_since(uint32_t v, uint32_t from)
{
    uint32_t n = number(v), latest = turn + 1;
    expect(n >= from && n <= latest ? from : n, from);
}

static void execute(uint32_t r)
{
    const uint8_t *at = plan.execute + plan.offset;
    uint32_t count = 0, v = 0;
    reg_t si;
    switch (plan.wait_for) {
    case FLAG:
    case CODE:
        if (plan.wait_for == CODE)
            sleep_until(*(volatile uint32_t *)(at + 1) == value(r), "the patched bytes to appear in memory");
        else
            sleep_until(turn >= r, "the next patch");
        expect(plan.run(at) & plan.mask, value(r) & plan.mask);
        break;
    case WAIT_BLOCK:
        for (uint32_t patience = 0; !count; patience++) {
            check(patience < 10000000, "CPU %u waited in vain for the next patch", cpu_index());
            if (patience)                               /* perhaps it needs the core we run on */
                sleep_until(turn >= r, "the next patch");
            count = 3000;
            si = r;
            v = run_block(at - (wait_block_end - wait_block), &count, &si);
        }
        expect(v, value(r));
        break;
    case LOOK_BLOCK:
        do {
            si = (reg_t)&begun;
            v = run_block(at - (look_block_end - look_block), &count, &si);
            expect_since(v, (uint32_t)si);
        } while (si < r);
        break;
    case NOTHING:
        begun = 1;
        for (uint32_t from = turn; from < plan.rounds; from = turn)
            expect_since(serialise_and_call(at), from);
        results[cpu_index()].done = plan.rounds - 1;
    }
    results[cpu_index()].done++;
    wake(plan.patcher);
}

static void jit_job(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    if (me != plan.patcher) {
        if (plan.executors >> me & 1)
            while (results[me].done < plan.rounds)
                execute(results[me].done + 1);
        return;
    }
    uint64_t end = patience();
    for (uint32_t r = 1, random = 7; r <= plan.rounds; r++) {
        if (plan.wait_for == NOTHING && rdtsc() > end)
            plan.rounds = r;                            /* the executors leave with this one */
        if (plan.wait_for == LOOK_BLOCK || plan.wait_for == NOTHING)
            spin_until(begun, "an executor to begin");
        if (plan.wait_for == NOTHING) {                 /* CPU 1 is an executor */
            uint32_t runs = results[1].runs;
            spin_until(results[1].runs != runs || results[1].done, "an executor to run on");
            for (uint32_t i = random32(&random) % 100; i; i--)
                pause();
        }
        begun = begun && plan.wait_for == NOTHING;
        plan.patch(plan.write + plan.offset, value(r));
        compiler_barrier();
        turn = r;
        for (uint32_t i = 0; i < ncpus; i++)
            if (plan.executors >> i & 1 && i != me)
                wake(i);
        if (plan.executors >> me & 1) {
            if (plan.write == plan.execute && plan.run == serialise_and_call && plan.wait_for == FLAG)
                expect(call(plan.execute + plan.offset) & plan.mask, value(r) & plan.mask);     /* own write: nothing else needed */
            expect(plan.run(plan.execute + plan.offset) & plan.mask, value(r) & plan.mask);
        }
        for (uint32_t i = 0; i < ncpus && plan.wait_for != NOTHING; i++)
            if (plan.executors >> i & 1 && i != me)
                sleep_until(results[i].done == r, "an executor to run the patched code");
    }
}

static uint8_t *pages, *alias1, *alias2;                /* two frames, and two more addresses each */

static uint32_t jit(struct plan p, const char *to, bool must)
{
    char what[64];
    plan = p;
    plan.run = p.run ? p.run : serialise_and_call;
    plan.mask = p.mask ? p.mask : ~0u;
    plan.write = p.write ? p.write : pages;
    plan.execute = p.execute ? p.execute : pages;
    if (!plan.rounds)
        plan.rounds = for_many(rounds / 4);
    turn = begun = 0;
    uint8_t *at = pages + plan.offset;
    uint64_t f = function(0);
    for (uint32_t i = 0; i < 2 * PAGE_SIZE; i += 8)
        memcpy(pages + i, &f, 8);
    memcpy(at, &f, 8);
    if (plan.wait_for == WAIT_BLOCK)
        memcpy(at - (wait_block_end - wait_block), wait_block, (size_t)(wait_block_end - wait_block));
    if (plan.wait_for == LOOK_BLOCK)
        memcpy(at - (look_block_end - look_block), look_block, (size_t)(look_block_end - look_block));
    uint64_t start = rdtsc();
    run_on_all(jit_job, 0);
    snprintf(what, sizeof what, "%s%s", p.name, to);
    return report(what, start, must);
}

static void patching(void)
{
    uint32_t all = (uint32_t)((1ull << ncpus) - 1), last = ncpus - 1;
    alias1 = (uint8_t *)FREE_VA;
    alias2 = (uint8_t *)FREE_VA + 0x10000;
    for (uint32_t i = 0; i < 2 * PAGE_SIZE; i += PAGE_SIZE) {
        map_page((reg_t)alias1 + i, (reg_t)pages + i, PTE_W);
        map_page((reg_t)alias2 + i, (reg_t)pages + i, PTE_W);
    }

    struct plan store = { .name = "store", .patch = by_store, .offset = 63, .executors = 1 };
    if (ncpus > 1) {
        store.rounds = rounds;
        store.executors = 2;
        jit(store, ", CPU 0 to CPU 1", true);
        store.patcher = 1;
        store.executors = 1;
        jit(store, ", CPU 1 to CPU 0", true);
        store.rounds = for_many(rounds);
    }
    store.patcher = last;
    store.executors = all;
    jit(store, ", to all, writer too", true);

    /* Write here, run there. */
    const struct plan aliases[] = {
        { .name = "written at an alias", .write = alias1 }, { .name = "run at an alias", .execute = alias1 },
        { .name = "written and run at aliases", .write = alias1, .execute = alias2 },
        { .name = "written and run at one alias", .write = alias2, .execute = alias2 },
    };
    for (uint32_t i = 0; i < array_size(aliases); i++) {
        struct plan p = aliases[i];
        p.patch = by_store;
        p.offset = 127;
        p.executors = all;
        p.patcher = i % ncpus;
        jit(p, "", true);
    }

    /* Every kind of store. */
    const struct plan ways[] = {
        { .name = "four byte stores", .patch = by_bytes, .offset = 61 },
        { .name = "store over a cache line's end", .patch = by_store, .offset = 61 },
        { .name = "store over a page's end", .patch = by_store, .offset = PAGE_SIZE - 3 },
        { .name = "store just behind a page's end", .patch = by_store, .offset = PAGE_SIZE - 1 },
        { .name = "rep movsb", .patch = by_movs, .offset = 200 },
        { .name = "rep movsb over a page's end", .patch = by_movs, .offset = PAGE_SIZE - 4 },
        { .name = "rep movsl, a whole page", .patch = by_movs_page, .run = anywhere_in_page },
        { .name = "rep stosb", .patch = by_stosb, .offset = 300, .mask = 0xFF },
        { .name = "rep stosl, a whole page", .patch = by_stos_page, .run = anywhere_in_page, .mask = 0xFF },
        { .name = "xchg", .patch = by_xchg, .offset = 511 },
        { .name = "lock cmpxchg", .patch = by_cmpxchg, .offset = 511 },
        { .name = "lock xadd", .patch = by_xadd, .offset = 511 },
        { .name = "lock xadd over a page's end (split)", .patch = by_xadd, .offset = PAGE_SIZE - 3 },
        { .name = "lock cmpxchg8b", .patch = by_cmpxchg8b, .offset = 512 },
        { .name = "fistp, 8 bytes", .patch = by_fistp, .offset = 512 },
        { .name = "fistp, two functions on two pages", .patch = by_fistp_across, .run = both_sides, .offset = PAGE_SIZE - 4, .mask = 0xFFFF },
        { .name = "push", .patch = by_push, .offset = 1000 },
    };
    for (uint32_t i = 0; i < array_size(ways); i++) {
        struct plan p = ways[i];
        p.executors = all;
        p.patcher = i % ncpus;
        if (p.run == anywhere_in_page)
            p.rounds = for_many(rounds / 16);
        jit(p, "", true);
    }

    if (ncpus == 1)
        return;
    struct plan block = { .name = "told by the code bytes themselves", .patch = by_store, .offset = 63, .wait_for = CODE, .executors = all & ~1u };
    jit(block, "", true);
    block.patch = by_xchg;
    jit(block, " (xchg)", true);
    block = (struct plan){ .name = "waiting in the patched block", .patch = by_store, .offset = 127, .wait_for = WAIT_BLOCK, .executors = all & ~1u };
    jit(block, "", true);
    block.name = "patcher waits for nobody";
    block.wait_for = NOTHING;
    jit(block, "", exact);
}

/* A block looks at the flag, serialises and runs the patched instruction, while the patch is made. Emulators that check
   for patches only between blocks run the old instruction after having seen the flag and after CPUID. They have a
   second hole of the same kind: a block translated between the check of a store and the store itself stays in use.
   Both are rare outside of this probe. Where it finds the first, checks that the second can fail are not judged. */
static void is_exact(void)
{
    struct plan p = { .name = "flag seen in the block that is patched", .patch = by_store, .offset = 511, .wait_for = LOOK_BLOCK,
                      .executors = 2, .rounds = for_many(rounds / 10) };
    bool strict = option("strict");
    exact = !jit(p, "", strict) || strict;
    if (!exact)
        printf("coherence: this machine runs a patched block to its end, even beyond CPUID: not judged on this machine are\n"
               "coherence: patching without a pause and stray int3s (with \"strict\" on the command line they are)\n");
}

/* ---- (2) a frame gets other code and another address, as exec and mmap do it ---- */

enum { VECTOR_SHOOT = 0x50, VECTOR_SYNC = 0x51 };
static struct { volatile reg_t address; volatile uint32_t sequence; } shoot;
static volatile uint32_t acks[MAX_CPUS];

static void handle_shoot(struct trap *t)
{
    (void)t;
    drop_page((void *)shoot.address);
    acks[cpu_index()] = shoot.sequence;
    irq_done();
}

static void handle_sync(struct trap *t)
{
    (void)t;
    cpuid(0, 0);
    acks[cpu_index()] = shoot.sequence;
    irq_done();
}

static void all_others(uint32_t vector)
{
    uint32_t me = cpu_index();
    shoot.sequence++;
    if (ncpus > 1)
        ipi_others(vector);
    for (uint32_t i = 0; i < ncpus; i++)
        if (i != me)
            spin_until(acks[i] == shoot.sequence, "the others to answer an IPI");
}

static uint8_t *frames[3];
static uint32_t reuse_rounds;

/* The program of round r: function i (1 … 511) at 8 * i; the rest of the page are the halves of a function that begins
   on the last two bytes of one page and ends on the first four of the next. */
static uint32_t program_value(uint32_t r, uint32_t i) { return value(r << 9 | i); }

static void write_program(uint8_t *frame, uint32_t r)
{
    static uint64_t image[PAGE_SIZE / 8];
    uint64_t *to = r & 1 ? image : (uint64_t *)frame;
    for (uint32_t i = 1; i < PAGE_SIZE / 8; i++)
        to[i] = function(program_value(r, i));
    uint8_t *b = (uint8_t *)to;
    b[0] = b[1] = b[2] = (uint8_t)value(r);
    b[3] = 0xC3;
    b[PAGE_SIZE - 2] = 0xB8;
    b[PAGE_SIZE - 1] = (uint8_t)value(r);
    if (r & 1)
        memcpy(frame, image, PAGE_SIZE);
}

static void reuse_job(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), random = 31 + me;
    uint8_t *window = (uint8_t *)FREE_VA + 0x20000;     /* two pages; round r fills the one that r & 1 says */
    for (uint32_t r = 1; r <= reuse_rounds; r++) {
        uint32_t writer = r % ncpus;
        if (me == writer) {
            uint8_t *frame = frames[r % 3];
            reg_t va = (reg_t)window + (r & 1) * PAGE_SIZE;
            write_program(frame, r);
            map_page(va, (reg_t)frame, 0);
            shoot.address = va;
            all_others(VECTOR_SHOOT);
            turn = r;
            for (uint32_t i = 0; i < ncpus; i++)
                wake(i);
        } else
            sleep_until(turn >= r, "the next program");
        for (uint32_t k = 0; k < 6; k++) {
            uint32_t i = 1 + random32(&random) % 511, which = k < 4 || r < 2 ? r : r - 1;
            if (i == 511)
                i = 1;
            expect(call(window + (which & 1) * PAGE_SIZE + 8 * i), program_value(which, i));
        }
        if (r > 1) {
            uint32_t first = r & 1 ? r - 1 : r, second = r & 1 ? r : r - 1;
            expect(call(window + PAGE_SIZE - 2), (value(first) & 0xFF) | (value(second) & 0xFF) * 0x01010100u);
        }
        results[me].done = r;
        wake((r + 1) % ncpus);
        if (me == (r + 1) % ncpus)
            for (uint32_t i = 0; i < ncpus; i++)
                sleep_until(results[i].done >= r, "all to run the program");
    }
}

static void reuse(void)
{
    for (uint32_t i = 0; i < array_size(frames); i++)
        frames[i] = alloc_page();
    on_vector(VECTOR_SHOOT, handle_shoot);
    reuse_rounds = for_many(rounds / 10);
    turn = 0;
    uint64_t start = rdtsc();
    run_on_all(reuse_job, 0);
    char what[64];
    snprintf(what, sizeof what, "frame reuse, %u programs", reuse_rounds);
    report(what, start, true);
}

/* ---- (3) patching of running code as kernels do it: int3, sync, tail, sync, first byte, sync ---- */

static uint8_t *text, *text_alias;
static struct { volatile uint32_t started, done, int3s, stray, last_stray; } poke;
enum { ENTRY = 0, PLACE = 61, PADS = 128, PAD_SIZE = 8 };       /* the instruction lies on two cache lines */

/* Instruction n: odd: mov $value(n), %eax. Even: a jump to one of eight pads, which load a value and return. */
static uint32_t pad_of(uint32_t n) { return n / 2 % 8; }
static uint32_t poke_value(uint32_t n) { return n & 1 ? value(n) : 0x70000000u + pad_of(n); }
static void poke_bytes(uint32_t n, uint8_t *b)
{
    uint32_t v = n & 1 ? value(n) : PADS + PAD_SIZE * pad_of(n) - (PLACE + 5);
    b[0] = n & 1 ? 0xB8 : 0xE9;
    memcpy(b + 1, &v, 4);
}

static void handle_int3(struct trap *t)
{
    uint32_t n = poke.started;
    __atomic_add_fetch(&poke.int3s, 1, __ATOMIC_RELAXED);
    check(t->ip == (reg_t)text + PLACE + 1, "CPU %u: int3 at %lx", cpu_index(), t->ip);
    if (n == poke.done && __atomic_exchange_n(&poke.last_stray, n, __ATOMIC_RELAXED) != n)
        __atomic_add_fetch(&poke.stray, 1, __ATOMIC_RELAXED);
    if (n & 1) {                                        /* do what the new instruction does */
        t->ax = value(n);
        t->ip = (reg_t)text + PLACE + 5;
    } else
        t->ip = (reg_t)text + PADS + PAD_SIZE * pad_of(n);
}

static uint32_t poke_rounds;

static void poke_job(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index(), random = 3 + me;
    if (me) {
        while (poke.done < poke_rounds) {
            uint32_t from = poke.done, v = call(text + (random32(&random) & 1 ? ENTRY : PLACE)), to = poke.started, n = from;
            while (n < to && poke_value(n) != v)
                n++;
            expect(v, poke_value(n));
        }
        return;
    }
    uint64_t end = patience();
    for (uint32_t n = 1; n <= poke_rounds; n++) {
        if (rdtsc() > end)
            poke_rounds = n;
        volatile uint8_t *at = (n & 2 ? text_alias : text) + PLACE;
        uint8_t b[5];
        poke_bytes(n, b);
        poke.started = n;
        at[0] = 0xCC;
        all_others(VECTOR_SYNC);
        for (int i = 1; i < 5; i++)
            at[i] = b[i];
        all_others(VECTOR_SYNC);
        if (ncpus == 1) {
            cpuid(0, 0);
            expect(call(text), poke_value(n));          /* through the handler */
        }
        at[0] = b[0];
        all_others(VECTOR_SYNC);
        poke.done = n;
        cpuid(0, 0);                                    /* it may have been written at the other address */
        expect(call(text), poke_value(n));
        for (uint32_t i = random32(&random) % 200; i; i--)
            pause();
    }
}

static void poking(void)
{
    text = alloc_page();
    text_alias = (uint8_t *)FREE_VA + 0x30000;
    map_page((reg_t)text_alias, (reg_t)text, PTE_W);
    memset(text, 0x90, PLACE);
    poke_bytes(0, text + PLACE);
    text[PLACE + 5] = 0xC3;
    for (uint32_t i = 0; i < 8; i++) {
        uint64_t f = function(0x70000000u + i);
        memcpy(text + PADS + PAD_SIZE * i, &f, PAD_SIZE);
    }
    on_vector(3, handle_int3);
    on_vector(VECTOR_SYNC, handle_sync);
    poke_rounds = for_many(rounds / 10);
    uint64_t start = rdtsc();
    run_on_all(poke_job, 0);
    char what[64];
    snprintf(what, sizeof what, "int3 patching, %u patches, %u int3s", poke_rounds, poke.int3s);
    report(what, start, exact);
    printf("coherence: %-44s %8u patches with an int3 after all had synchronised\n", "", poke.stray);
    check(!poke.stray || !exact, "%u of %u int3 patches went on trapping after all CPUs had synchronised", poke.stray, poke_rounds);
}

/* ---- (4) code and data on one page, and in one cache line ---- */

static uint8_t *mixed;                                  /* lines of 64 bytes: counter, inc (%rdi), lock inc (%rdi) */
static uint32_t mixed_calls;

static void count_in(uint32_t line, uint32_t code, uint32_t counter_line)
{
    asm volatile("call *%0" : : "r"(mixed + 64 * line + code), "D"(mixed + 64 * counter_line) : "memory", "cc");
}

static void mixed_job(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    uint64_t end = rdtsc() + us_to_tsc(20000000);
    for (uint32_t i = 0; i < mixed_calls; i++) {
        count_in((i + me) % ncpus, 8, me);              /* code anywhere, data in the own line */
        count_in(me, 16, ncpus);                        /* own line's code, one counter for all */
        if (i % 64 == 0)
            check(rdtsc() < end, "CPU %u: livelock: %u of %u calls in 20 s next to written data", me, i, mixed_calls);
    }
    results[me].runs = 2 * mixed_calls;
}

static void mixing(void)
{
    mixed = alloc_page();
    for (uint32_t i = 0; i <= ncpus; i++)
        memcpy(mixed + 64 * i + 8, "\xFF\x07\xC3\x90\x90\x90\x90\x90\xF0\xFF\x07\xC3", 12);
    mixed_calls = rounds * 10;
    uint64_t start = rdtsc();
    run_on_all(mixed_job, 0);
    uint32_t us = tsc_to_us(rdtsc() - start);
    for (uint32_t i = 0; i <= ncpus; i++) {
        uint32_t counted = *(uint32_t *)(mixed + 64 * i), wanted = i < ncpus ? mixed_calls : mixed_calls * ncpus;
        check(counted == wanted, "counter %u next to code is %u instead of %u", i, counted, wanted);
    }
    report("counters next to code, exact", start, true);
    printf("coherence: %44s %8u calls per ms, all CPUs\n", "", (uint32_t)mul_div(2000ull * mixed_calls, ncpus, us + 1));
}

/* ---- (6) a CPU that changes its own code ---- */

extern const uint8_t smc_next[], smc_jump[], smc_before[], smc_rep[], smc_xchg[], smc_end[];
asm(".pushsection .text\n"                              /* esi: value or count, rdi: where the code is */
    "smc_next: mov %esi, 1f - smc_next + 1(%" R "di)\n"
    "1: mov $0x11111111, %eax; ret\n"
    "smc_jump: mov %esi, 1f - smc_jump + 1(%" R "di); jmp 1f\n"
    "1: mov $0x11111111, %eax; ret\n"
    "smc_before: xor %eax, %eax\n"
    "1: mov %esi, 2f - smc_before + 1(%" R "di)\n"
    "2: add $0x11111111, %eax\n"
    "   dec %esi; mov %esi, 3f - smc_before + 1(%" R "di); test %esi, %esi; jnz 1b\n"
    "3: add $0x11111111, %eax; ret\n"
    "smc_rep: mov %esi, %eax; mov $4, %ecx; lea 1f - smc_rep + 1(%" R "di), %" R "di; rep stosb\n"
    "1: mov $0x11111111, %eax; ret\n"
    "smc_xchg: mov %esi, %eax; lock xchg %eax, 1f - smc_xchg + 1(%" R "di)\n"
    "1: mov $0x11111111, %eax; ret\n"
    "smc_end: .popsection");

static uint8_t *smc_page;                               /* all CPUs on it, side by side */
static uint32_t smc_rounds;

static uint32_t call_smc(uint8_t *code, uint32_t v)
{
    uint32_t a = 0;
    asm volatile("call *%3" : "+a"(a), "+S"(v), "+D"(code) : "r"(code) : "ecx", "memory", "cc");
    return a;
}

static void smc_job(void *shared)
{
    uint32_t me = cpu_index();
    uint8_t *code = shared ? smc_page + 128 * me : alloc_page();
    memcpy(code, smc_next, (size_t)(smc_end - smc_next));
    for (uint32_t r = 1; r <= smc_rounds; r++) {
        uint32_t v = value(r), n = 1 + r % 50;
        expect(call_smc(code, v), v);
        expect(call_smc(code + (smc_jump - smc_next), v), v);
        expect(call_smc(code + (smc_before - smc_next), n), n * (n + 1) / 2);
        expect(call_smc(code + (smc_rep - smc_next), v), (v & 0xFF) * 0x01010101u);
        expect(call_smc(code + (smc_xchg - smc_next), v), v);
    }
}

static void own_code(void)
{
    smc_page = alloc_page();
    smc_rounds = rounds / 10;
    for (int shared = 0; shared < 2; shared++) {
        uint64_t start = rdtsc();
        run_on_all(smc_job, shared ? smc_page : 0);
        report(shared ? "own code changed, all CPUs on one page" : "own code changed, a page each", start, true);
    }
}

void guest_main(void)
{
    rounds = option_number("rounds", 2000) * scale;
    pages = alloc_pages(2);
    if (ncpus > 1)
        is_exact();
    if (option_is("only", "jit"))
        patching();
    if (option_is("only", "reuse"))
        reuse();
    if (option_is("only", "poke"))
        poking();
    if (option_is("only", "shared"))
        mixing();
    if (option_is("only", "own"))
        own_code();
    check(!total_stale, "%u of %u runs were stale%s", total_stale, total_runs, summary);
    pass("%u runs on %u CPU%s, none stale", total_runs, ncpus, ncpus == 1 ? "" : "s");
}
