/* The litmus tests and their runner. The bodies are assembly, so that what the CPU sees is what is written here. */
#include "litmus.h"

/* x and y have a cache line each: the races are between lines, as the memory model is about. */
struct litmus_slot {
    volatile uint32_t x;
    uint32_t pad_x[15];
    volatile uint32_t y;
    uint32_t pad_y[15];
} __attribute__((aligned(64)));

enum { BATCH = 256, CHUNK = 8 };

/* `wobble` shifts the threads against each other from slot to slot; in step they would never meet. */
#define THREAD(name, body)                                                                          \
    static void name(struct litmus_slot *s, struct litmus_regs *r, uint32_t n, const uint8_t *wobble) \
    {                                                                                               \
        for (; n; n--, s++, r++, wobble++) {                                                        \
            for (uint32_t w = *wobble; w; w--)                                                      \
                compiler_barrier();                                                                 \
            uint32_t a = 0, b = 0;                                                                  \
            asm volatile(body : [a] "+r"(a), [b] "+r"(b), [x] "+m"(s->x), [y] "+m"(s->y) : : "memory", "cc"); \
            r->a = a;                                                                               \
            r->b = b;                                                                               \
        }                                                                                           \
    }

/* EXTRA=-DNO_MFENCE builds guests whose SB and R tests must fail: the proof that they see a missing fence. */
#ifdef NO_MFENCE
#define MFENCE ""
#define LOCKED_FENCE ""
#elif defined(__x86_64__)
#define MFENCE "mfence;"
#define LOCKED_FENCE "lock orl $0, (%%rsp);"
#else
#define MFENCE "mfence;"
#define LOCKED_FENCE "lock orl $0, (%%esp);"
#endif

THREAD(sb_0, "movl $1, %[x]; movl %[y], %[a]")
THREAD(sb_1, "movl $1, %[y]; movl %[x], %[a]")
THREAD(sb_mfence_0, "movl $1, %[x];" MFENCE "movl %[y], %[a]")
THREAD(sb_mfence_1, "movl $1, %[y];" MFENCE "movl %[x], %[a]")
THREAD(sb_lock_0, "movl $1, %[x];" LOCKED_FENCE "movl %[y], %[a]")
THREAD(sb_lock_1, "movl $1, %[y];" LOCKED_FENCE "movl %[x], %[a]")
THREAD(sb_xchg_0, "movl $1, %[b]; xchgl %[b], %[x]; movl %[y], %[a]")
THREAD(sb_xchg_1, "movl $1, %[b]; xchgl %[b], %[y]; movl %[x], %[a]")
/* A store and then a load of the same word: forwarded from the store buffer, before anybody else sees it. */
THREAD(sb_forward_0, "movl $1, %[x]; movl %[x], %[a]; movl %[y], %[b]")
THREAD(sb_forward_1, "movl $1, %[y]; movl %[y], %[a]; movl %[x], %[b]")
THREAD(mp_0, "movl $1, %[x]; movl $1, %[y]")
THREAD(mp_1, "movl %[y], %[a]; movl %[x], %[b]")
THREAD(lb_0, "movl %[x], %[a]; movl $1, %[y]")
THREAD(lb_1, "movl %[y], %[a]; movl $1, %[x]")
THREAD(store_x, "movl $1, %[x]")
THREAD(store_y, "movl $1, %[y]")
THREAD(read_xy, "movl %[x], %[a]; movl %[y], %[b]")
THREAD(read_yx, "movl %[y], %[a]; movl %[x], %[b]")
THREAD(w2_0, "movl $1, %[x]; movl $2, %[y]")
THREAD(w2_1, "movl $1, %[y]; movl $2, %[x]")
THREAD(r_0, "movl $1, %[x]; movl $1, %[y]")
THREAD(r_1, "movl $2, %[y]; movl %[x], %[a]")
THREAD(r_mfence_1, "movl $2, %[y];" MFENCE "movl %[x], %[a]")
THREAD(s_0, "movl $2, %[x]; movl $1, %[y]")
THREAD(s_1, "movl %[y], %[a]; movl $1, %[x]")
THREAD(read_x2, "movl %[x], %[a]; movl %[x], %[b]")

#define T(t, r) (2 * (t) + (r))
const struct litmus litmus_tests[] = {
    { "sb", "x=1; a=y | y=1; b=x", 2, { sb_0, sb_1 }, 2, { T(0, 0), T(1, 0) }, "a,b", { 0, 0 }, true },
    { "sb+mfence", "x=1; mfence; a=y | y=1; mfence; b=x", 2, { sb_mfence_0, sb_mfence_1 }, 2, { T(0, 0), T(1, 0) }, "a,b", { 0, 0 }, false },
    { "sb+lock", "x=1; lock or; a=y | y=1; lock or; b=x", 2, { sb_lock_0, sb_lock_1 }, 2, { T(0, 0), T(1, 0) }, "a,b", { 0, 0 }, false },
    { "sb+xchg", "xchg x,1; a=y | xchg y,1; b=x", 2, { sb_xchg_0, sb_xchg_1 }, 2, { T(0, 0), T(1, 0) }, "a,b", { 0, 0 }, false },
    { "sb+forward", "x=1; a=x; b=y | y=1; c=y; d=x", 2, { sb_forward_0, sb_forward_1 }, 4, { T(0, 0), T(0, 1), T(1, 0), T(1, 1) }, "a,b,c,d", { 1, 0, 1, 0 }, true },
    { "mp", "x=1; y=1 | a=y; b=x", 2, { mp_0, mp_1 }, 2, { T(1, 0), T(1, 1) }, "a,b", { 1, 0 }, false },
    { "lb", "a=x; y=1 | b=y; x=1", 2, { lb_0, lb_1 }, 2, { T(0, 0), T(1, 0) }, "a,b", { 1, 1 }, false },
    { "2+2w", "x=1; y=2 | y=1; x=2", 2, { w2_0, w2_1 }, 2, { SEEN_X, SEEN_Y }, "x,y", { 1, 1 }, false },
    { "r", "x=1; y=1 | y=2; a=x", 2, { r_0, r_1 }, 2, { SEEN_Y, T(1, 0) }, "y,a", { 2, 0 }, true },
    { "r+mfence", "x=1; y=1 | y=2; mfence; a=x", 2, { r_0, r_mfence_1 }, 2, { SEEN_Y, T(1, 0) }, "y,a", { 2, 0 }, false },
    { "s", "x=2; y=1 | a=y; x=1", 2, { s_0, s_1 }, 2, { T(1, 0), SEEN_X }, "a,x", { 1, 2 }, false },
    { "corr", "x=1 | a=x; b=x", 2, { store_x, read_x2 }, 2, { T(1, 0), T(1, 1) }, "a,b", { 1, 0 }, false },
    { "iriw", "x=1 | y=1 | a=x; b=y | c=y; d=x", 4, { store_x, store_y, read_xy, read_yx }, 4, { T(2, 0), T(2, 1), T(3, 0), T(3, 1) }, "a,b,c,d", { 1, 0, 1, 0 }, false },
};
const uint32_t litmus_count = array_size(litmus_tests);

static struct litmus_slot slots[BATCH];
static struct litmus_regs regs[4][BATCH] __attribute__((aligned(64)));
static uint8_t wobbles[4][2 * BATCH] __attribute__((aligned(64)));

static struct {
    const struct litmus *test;
    struct litmus_result *result;
    uint32_t slots, epoch;                              /* epoch: progress never goes back, not even between runs */
    uint64_t end;
    volatile bool stop;
    struct barrier barrier;
} run;

/* Within a batch the threads fall in step again every few slots. Only as a courtesy: who is not there after a moment
   (its host thread may not be running at all) is not waited for. */
static struct { volatile uint32_t at; } __attribute__((aligned(64))) progress[4];

static void fall_in_step(uint32_t me, uint32_t threads, uint32_t at, uint32_t dawdle)
{
    progress[me].at = at;
    for (uint32_t t = 0; t < threads; t++)
        for (uint32_t patience = 200; patience && (int32_t)(progress[t].at - at) < 0; patience--)
            compiler_barrier();
    while (dawdle--)
        compiler_barrier();
}

static uint32_t key_of(const struct litmus *t, uint32_t i)
{
    uint32_t key = 0;
    for (uint32_t k = 0; k < t->n_seen; k++) {
        uint32_t what = t->seen[k];
        uint32_t v = what == SEEN_X ? slots[i].x : what == SEEN_Y ? slots[i].y : what & 1 ? regs[what / 2][i].b : regs[what / 2][i].a;
        check(v < 3, "litmus %s: a word holds %x, which nobody wrote", t->name, v);
        key = key * 3 + v;
    }
    return key;
}

static void thread(void *number)
{
    const struct litmus *t = run.test;
    uint32_t me = (uint32_t)(uintptr_t)number, random = 4711 + 99 * me + (uint32_t)rdtsc();
    random |= 1;
    for (uint32_t i = 0; i < 2 * BATCH; i++)
        wobbles[me][i] = random32(&random) >> 8 & 7;
    for (uint32_t round = 0;; round++) {
        /* Each of the first two owns the line that it will read, and not the one it will write: so its store has to
           wait for the line while its load is quick. That is when store buffers show. */
        if (me == 0)
            for (uint32_t i = 0; i < BATCH; i++)
                slots[i].y = 0;
        if (me == 1)
            for (uint32_t i = 0; i < BATCH; i++)
                slots[i].x = 0;
        barrier(&run.barrier, t->threads);
        if (run.stop)
            return;
        for (uint32_t i = 0; i < BATCH; i += CHUNK) {
            uint32_t dice = random32(&random) >> 8;
            fall_in_step(me, t->threads, run.epoch + round * BATCH + i + 1, dice & 63);
            t->code[me](slots + i, regs[me] + i, CHUNK, wobbles[me] + (dice >> 6 & (BATCH - 1)));
        }
        barrier(&run.barrier, t->threads);
        if (me == 0) {
            struct litmus_result *r = run.result;
            for (uint32_t i = 0; i < BATCH; i++)
                r->histogram[key_of(t, i)]++;
            r->slots += BATCH;
            run.stop = r->slots >= run.slots || rdtsc() >= run.end;
        }
        barrier(&run.barrier, t->threads);              /* nobody zeroes what is not yet counted */
    }
}

void litmus_run(const struct litmus *test, uint32_t base, uint32_t n, uint32_t max_ms, struct litmus_result *result)
{
    memset(result, 0, sizeof *result);
    uint64_t start = rdtsc();
    run.test = test;
    run.result = result;
    run.slots = n;
    run.end = start + (uint64_t)max_ms * tsc_khz;
    run.stop = false;
    run.epoch = progress[0].at;
    for (uint32_t t = 0; t < 4; t++)
        progress[t].at = run.epoch;
    uint32_t mine = ~0u;
    for (uint32_t t = 0; t < test->threads; t++) {
        uint32_t cpu = (base + t) % ncpus;
        if (cpu == cpu_index())
            mine = t;
        else
            run_on(cpu, thread, (void *)(uintptr_t)t);
    }
    if (mine != ~0u)
        thread((void *)(uintptr_t)mine);
    for (uint32_t t = 0; t < test->threads; t++)
        if ((base + t) % ncpus != cpu_index())
            wait_done((base + t) % ncpus);
    uint32_t key = 0;
    for (uint32_t k = 0; k < test->n_seen; k++)
        key = key * 3 + test->marked[k];
    result->marked = result->histogram[key];
    result->us = tsc_to_us(rdtsc() - start);
}

/* "0,1" for a key of the histogram */
uint32_t litmus_outcome_text(const struct litmus *test, uint32_t key, char *out, size_t size)
{
    uint32_t at = 0, weight = 1;
    for (uint32_t k = 1; k < test->n_seen; k++)
        weight *= 3;
    for (uint32_t k = 0; k < test->n_seen; k++, weight /= 3)
        at += (uint32_t)snprintf(out + at, size - at, k ? ",%u" : "%u", key / weight % 3);
    return at;
}

const struct litmus *litmus_find(const char *name)
{
    size_t n = strlen(name) + 1;
    for (uint32_t i = 0; i < litmus_count; i++)
        if (!memcmp(litmus_tests[i].name, name, n))
            return &litmus_tests[i];
    fail("no litmus test is called %s", name);
}
