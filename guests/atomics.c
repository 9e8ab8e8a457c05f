/* atomics: no LOCKed instruction ever loses an update, aligned or split, and memory is ordered as x86-TSO says. */
#include "litmus.h"

const char guest_name[] = "atomics";

/* EXTRA=-DNO_LOCK builds a guest that must fail: the proof that the checks below see what they are for. */
#ifdef NO_LOCK
#define LOCK ""
#else
#define LOCK "lock "
#endif

#ifdef __x86_64__
typedef unsigned __int128 wide;                         /* holds every sum of 64-bit values that is made here */
#else
typedef uint64_t wide;
#endif

/* What one CPU reports after a run; each test has its own law over the sum of these and the final word. */
static struct tally {
    wide sum;                                           /* of everything added or taken away */
    uint64_t ops, carries, events, olds;                /* flags that came back; old values that came back */
    uint64_t held;                                      /* xchg: the token in hand at the end */
} __attribute__((aligned(64))) tallies[MAX_CPUS];

static struct {
    volatile uint8_t *word;                             /* contended by all */
    uint32_t width, rounds, cpus;                       /* width in bits */
    void (*body)(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t);
    struct barrier barrier;
    uint64_t start_value;
    volatile uint64_t plain;                            /* protected by a lock in the word */
    volatile uint32_t working;                          /* CPUs that have not yet done their rounds */
    volatile uint32_t plain_done;                       /* plain accesses done so far */
    bool plain_test;                                    /* one CPU does plain accesses instead */
} now;

static uint8_t *arena;                                  /* two pages, adjacent for the CPU, apart and reversed in memory */

/* ---- the laws: each returns false and leaves a sentence when updates were lost ---- */

static char reason[160];
#define law(condition, ...) do { if (!(condition)) { snprintf(reason, sizeof reason, __VA_ARGS__); return false; } } while (0)

static uint64_t mask_of(uint32_t width) { return width == 64 ? ~0ull : (1ull << width) - 1; }

static uint64_t final_word(void)
{
    uint64_t v = 0;
    memcpy(&v, (void *)now.word, now.width == 128 ? 8 : now.width / 8);
    return v;
}

static struct tally total(void)
{
    struct tally t = { 0 };
    for (uint32_t i = 0; i < now.cpus; i++) {
        t.sum += tallies[i].sum;
        t.ops += tallies[i].ops;
        t.carries += tallies[i].carries;
        t.events += tallies[i].events;
        t.olds += tallies[i].olds;
    }
    return t;
}

/* Everything added = final value + carries out of the top: exact even for bytes, where a sum alone would wrap. */
static bool law_sum_up(void)
{
    struct tally t = total();
    wide sum = t.sum + now.start_value;
    law(final_word() == ((uint64_t)sum & mask_of(now.width)), "the sum is off by %lld",
        (long long)(final_word() - ((uint64_t)sum & mask_of(now.width))));
    law(t.carries == (uint64_t)(sum >> now.width), "%llu carries came back instead of %llu", (unsigned long long)t.carries,
        (unsigned long long)(sum >> now.width));
    return true;
}

static bool law_sum_down(void)
{
    struct tally t = total();
    wide sum = t.sum + final_word();
    law(((uint64_t)sum & mask_of(now.width)) == now.start_value, "the sum is off by %lld",
        (long long)(((uint64_t)sum & mask_of(now.width)) - now.start_value));
    law(t.carries == (uint64_t)(sum >> now.width), "%llu borrows came back instead of %llu", (unsigned long long)t.carries,
        (unsigned long long)(sum >> now.width));
    return true;
}

/* INC and DEC leave CF alone, but they pass zero once a turn. */
static bool law_inc(void)
{
    struct tally t = total();
    wide end = (wide)now.start_value + t.ops;
    law(final_word() == ((uint64_t)end & mask_of(now.width)), "off by %lld", (long long)(final_word() - ((uint64_t)end & mask_of(now.width))));
    law(t.events == (uint64_t)(end >> now.width), "ZF came back %llu times instead of %llu", (unsigned long long)t.events,
        (unsigned long long)(end >> now.width));
    return true;
}

static bool law_dec(void)
{
    struct tally t = total();
    uint64_t end = (now.start_value - t.ops) & mask_of(now.width);
    uint64_t zeros = t.ops < now.start_value ? 0
                   : 1 + (now.width == 64 ? 0 : (uint64_t)((wide)(t.ops - now.start_value) >> now.width));
    law(final_word() == end, "off by %lld", (long long)(final_word() - end));
    law(t.events == zeros, "ZF came back %llu times instead of %llu", (unsigned long long)t.events, (unsigned long long)zeros);
    return true;
}

/* The sign changes with every operation, so exactly every other one comes back negative. */
static bool law_neg(void)
{
    struct tally t = total();
    law(t.events == (t.ops + 1) / 2, "%llu of %llu came back negative", (unsigned long long)t.events, (unsigned long long)t.ops);
    law(final_word() == ((t.ops & 1 ? -now.start_value : now.start_value) & mask_of(now.width)), "the sign is wrong at the end");
    return true;
}

/* events: own bits found changed by somebody else. */
static bool law_own_bits(void)
{
    struct tally t = total();
    law(t.events == 0, "%llu updates of a CPU's own bits were lost or undone", (unsigned long long)t.events);
    law(final_word() == now.start_value, "the word is %llx at the end instead of %llx", (unsigned long long)final_word(),
        (unsigned long long)now.start_value);
    return true;
}

static bool law_not(void)
{
    struct tally t = total();
    law(t.events == 0, "%llu updates of a CPU's own bits were lost or undone", (unsigned long long)t.events);
    law(final_word() == ((t.carries & 1 ? ~now.start_value : now.start_value) & mask_of(now.width)), "one NOT too many or too few");
    return true;
}

/* Each old value from start to end - 1 was handed out exactly once, so their sum is known. */
static bool law_xadd(void)
{
    struct tally t = total();
    law(final_word() == ((now.start_value + t.ops) & mask_of(now.width)), "off by %lld",
        (long long)(final_word() - ((now.start_value + t.ops) & mask_of(now.width))));
    uint64_t olds = 0, v = now.start_value;
    for (uint64_t i = 0; i < t.ops; i++, v = (v + 1) & mask_of(now.width))
        olds += v;
    law(t.olds == olds, "some old value was handed out twice");
    return true;
}

static bool law_count(void)
{
    struct tally t = total();
    law(t.events == 0, "%llu times it failed although the value was as expected, or it tore", (unsigned long long)t.events);
    law(final_word() == ((now.start_value + t.ops) & mask_of(now.width > 64 ? 64 : now.width)), "off by %lld",
        (long long)(final_word() - ((now.start_value + t.ops) & mask_of(now.width > 64 ? 64 : now.width))));
    return true;
}

/* One token a CPU and one in the word: exchanged for ever, but none doubled, none gone. */
static bool law_tokens(void)
{
    law(final_word() <= now.cpus, "the word holds %llx, which is no token", (unsigned long long)final_word());
    uint64_t seen = 1ull << final_word();
    for (uint32_t i = 0; i < now.cpus; i++) {
        law(tallies[i].held <= now.cpus, "CPU %u holds %llx, which is no token", i, (unsigned long long)tallies[i].held);
        seen |= 1ull << tallies[i].held;
    }
    law(seen == (2ull << now.cpus) - 1, "a token was doubled and another one is gone");
    return true;
}

static bool law_plain_counter(void)
{
    struct tally t = total();
    law(now.plain == t.ops, "two CPUs held the lock at once: off by %lld", (long long)(now.plain - t.ops));
    return true;
}

static bool law_no_events(void)
{
    struct tally t = total();
    law(t.events == 0, "%llu times", (unsigned long long)t.events);
    return true;
}

/* ---- the bodies, one set for each width; S: suffix, T: type, BIG: an immediate as wide as there is ---- */

#define ARITHMETIC(op, name, S, T, BIG, prepare, extra)                                                               \
    static void name##_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                       \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        uint32_t random = 1234567 + cpu;                                                                              \
        for (uint32_t i = 0; i < rounds; i++) {                                                                       \
            T v = (T)((uint64_t)random32(&random) << 32 | random);                                                    \
            uint8_t c1, c2, c3;                                                                                       \
            asm volatile(prepare LOCK #op #S " %[v], %[m]; setc %[c]" : [m] "+m"(*m), [c] "=q"(c1) : [v] "q"(v) : "cc", "memory"); \
            asm volatile(prepare LOCK #op #S " $0x35, %[m]; setc %[c]" : [m] "+m"(*m), [c] "=q"(c2) : : "cc", "memory"); \
            asm volatile(prepare LOCK #op #S " %[v], %[m]; setc %[c]" : [m] "+m"(*m), [c] "=q"(c3) : [v] "i"((T)(BIG)) : "cc", "memory"); \
            t->sum += (wide)v + 0x35 + (T)(BIG) + 3 * (extra);                                                        \
            t->carries += c1 + c2 + c3;                                                                               \
            t->ops += 3;                                                                                              \
        }                                                                                                             \
    }

#define STEP(op, S, T, condition)                                                                                     \
    static void op##_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                         \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        (void)cpu;                                                                                                    \
        for (uint32_t i = 0; i < rounds; i++) {                                                                       \
            uint8_t flag;                                                                                             \
            asm volatile(LOCK #op #S " %[m]; set" #condition " %[f]" : [m] "+m"(*m), [f] "=q"(flag) : : "cc", "memory"); \
            t->events += flag;                                                                                        \
        }                                                                                                             \
        t->ops += rounds;                                                                                             \
    }

/* NOT gives nothing back. So each CPU also flips a bit of its own and compares it with the top bit, which only NOT
   changes: a NOT that is not atomic takes such a flip back. */
#define NOT(S, T)                                                                                                     \
    static void not_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                          \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        const uint32_t top = 8 * sizeof(T) - 1;                                                                       \
        T own = cpu < top ? (T)((T)1 << cpu) : 0, v;                                                                  \
        bool mine = false;                                                                                            \
        for (uint32_t i = 0; i < rounds; i++) {                                                                       \
            asm volatile(LOCK "not" #S " %[m]" : [m] "+m"(*m) : : "cc", "memory");                                    \
            asm volatile("lock xor" #S " %[v], %[m]" : [m] "+m"(*m) : [v] "q"(own) : "cc", "memory");                 \
            mine = !mine;                                                                                             \
            v = 0;                                                                                                    \
            asm volatile("lock xadd" #S " %[v], %[m]" : [m] "+m"(*m), [v] "+q"(v) : : "cc", "memory");                \
            if (own && (((v & own) != 0) ^ (v >> top & 1)) != mine)                                                   \
                t->events++;                                                                                          \
        }                                                                                                             \
        if (mine)                                                                                                     \
            asm volatile("lock xor" #S " %[v], %[m]" : [m] "+m"(*m) : [v] "q"(own) : "cc", "memory");                 \
        t->ops += rounds;                                                                                             \
        t->carries += rounds;                                                                                         \
    }

/* Bit `cpu` belongs to this CPU: nobody else may change it, however they write the rest. Plain loads look at it. */
#define SEE(expected) do { if (((*m & own) != 0) != (expected)) t->events++; } while (0)
#define OWN_BITS(name, S, T, set_it, clear_it, IMMEDIATE)                                                             \
    static inline __attribute__((always_inline)) void name##_##S##_at(volatile T *m, T own, uint32_t bit, uint32_t rounds, struct tally *t) \
    {                                                                                                                 \
        const T others = (T)~own;                                                                                     \
        (void)others; (void)bit;                                                                                      \
        for (uint32_t i = 0; i < rounds; i++) {                                                                       \
            SEE(false);                                                                                               \
            set_it(S, T, IMMEDIATE);                                                                                  \
            SEE(true);                                                                                                \
            SEE(true);                                                                                                \
            clear_it(S, T, IMMEDIATE);                                                                                \
            SEE(false);                                                                                               \
        }                                                                                                             \
        t->ops += 2 * rounds;                                                                                         \
    }                                                                                                                 \
    static void name##_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                       \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        if (cpu >= 8 * sizeof(T))                                                                                     \
            return;                                                                                                   \
        T own = (T)((T)1 << cpu);                                                                                     \
        uint32_t bit = cpu;                                                                                           \
        asm volatile("" : "+q"(own), "+r"(bit));        /* unknown to the compiler: the register forms */             \
        name##_##S##_at(m, own, bit, rounds / 2, t);                                                                  \
        switch (cpu) {                                  /* known: the immediate forms */                              \
        case 0: name##_##S##_at(m, 1, 0, rounds - rounds / 2, t); break;                                              \
        case 1: name##_##S##_at(m, 2, 1, rounds - rounds / 2, t); break;                                              \
        case 2: name##_##S##_at(m, 4, 2, rounds - rounds / 2, t); break;                                              \
        case 3: name##_##S##_at(m, 8, 3, rounds - rounds / 2, t); break;                                              \
        default: name##_##S##_at(m, own, bit, rounds - rounds / 2, t);                                                \
        }                                                                                                             \
    }

#define DO_OR(S, T, I)  asm volatile(LOCK "or" #S " %[v], %[m]" : [m] "+m"(*m) : [v] I(own) : "cc", "memory")
#define DO_AND(S, T, I) asm volatile(LOCK "and" #S " %[v], %[m]" : [m] "+m"(*m) : [v] I(others) : "cc", "memory")
#define DO_XOR(S, T, I) asm volatile(LOCK "xor" #S " %[v], %[m]" : [m] "+m"(*m) : [v] I(own) : "cc", "memory")
#define DO_BIT(op, S, T, old)                                                                                         \
    do {                                                                                                              \
        uint8_t was;                                                                                                  \
        asm volatile(LOCK #op #S " %[b], %[m]; setc %[c]" : [m] "+m"(*m), [c] "=q"(was) : [b] "rI"((T)bit) : "cc", "memory"); \
        if (was != (old))                                                                                             \
            t->events++;                                                                                              \
    } while (0)
#define DO_BTS(S, T, I) DO_BIT(bts, S, T, 0)
#define DO_BTR(S, T, I) DO_BIT(btr, S, T, 1)
#define DO_BTC_UP(S, T, I) DO_BIT(btc, S, T, 0)
#define DO_BTC_DOWN(S, T, I) DO_BIT(btc, S, T, 1)

#define XADD(S, T)                                                                                                    \
    static void xadd_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                         \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        (void)cpu;                                                                                                    \
        for (uint32_t i = 0; i < rounds; i++) {                                                                       \
            T v = 1;                                                                                                  \
            asm volatile(LOCK "xadd" #S " %[v], %[m]" : [m] "+m"(*m), [v] "+q"(v) : : "cc", "memory");                \
            t->olds += v;                                                                                             \
        }                                                                                                             \
        t->ops += rounds;                                                                                             \
    }

#define CMPXCHG(S, T)                                                                                                 \
    static void cmpxchg_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                      \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        (void)cpu;                                                                                                    \
        T expected = 0;                                                                                               \
        uint32_t attempts = 0;                                                                                        \
        for (uint32_t i = 0; i < rounds;) {                                                                           \
            T seen = expected;                                                                                        \
            uint8_t done;                                                                                             \
            asm volatile(LOCK "cmpxchg" #S " %[v], %[m]; setz %[d]" : [m] "+m"(*m), "+a"(seen), [d] "=q"(done)        \
                         : [v] "q"((T)(expected + 1)) : "cc", "memory");                                              \
            if (!done && seen == expected)                                                                            \
                t->events++;                                                                                          \
            if (done && seen != expected)                                                                             \
                t->events++;                                                                                          \
            check(++attempts < 1u << 30, "cmpxchg hardly ever succeeds");                                             \
            i += done;                                                                                                \
            expected = done ? (T)(expected + 1) : seen;                                                               \
        }                                                                                                             \
        t->ops += rounds;                                                                                             \
    }

#define XCHG(S, T)                                                                                                    \
    static void xchg_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                         \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        (void)cpu;                                                                                                    \
        T token = (T)t->held;                                                                                         \
        for (uint32_t i = 0; i < rounds; i++) {                                                                       \
            XCHG_BODY("", S);                           /* the bare one locks by itself */                            \
            XCHG_BODY("lock ", S);                                                                                    \
        }                                                                                                             \
        t->held = token;                                                                                              \
        t->ops += 2 * rounds;                                                                                         \
    }                                                                                                                 \
    static void xchg_lock_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                    \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        (void)cpu;                                                                                                    \
        for (uint32_t i = 0; i < rounds; i++) {                                                                       \
            struct wait w = { 0, 0, "a lock made of xchg" };                                                          \
            for (;;) {                                                                                                \
                T token = 1;                                                                                          \
                XCHG_BODY("", S);                                                                                     \
                if (!token)                                                                                           \
                    break;                                                                                            \
                wait_spin(&w, false);                                                                                 \
            }                                                                                                         \
            now.plain++;                                                                                              \
            compiler_barrier();                                                                                       \
            *m = 0;                                     /* TSO: a plain store releases */                             \
        }                                                                                                             \
        t->ops += rounds;                                                                                             \
    }
#ifdef NO_LOCK
#define XCHG_BODY(prefix, S) do { typeof(token) old_ = *m; *m = token; token = old_; } while (0)
#else
#define XCHG_BODY(prefix, S) asm volatile(prefix "xchg" #S " %[v], %[m]" : [m] "+m"(*m), [v] "+q"(token) : : "memory")
#endif

/* The last CPU stores plainly into the top byte of the word, the others change the bits below with LOCK: a plain store
   that falls between the read and the write of a locked operation must not be lost. Nor may the neighbours be touched. */
#define PLAIN_STORES(S, T)                                                                                            \
    static void plain_stores_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                 \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        if (cpu == now.cpus - 1) {                                                                                    \
            volatile uint8_t *top = (volatile uint8_t *)word + sizeof(T) - 1, *above = top + 1, *below = (volatile uint8_t *)word - 1; \
            for (uint8_t v = 1; now.working > 0; v++) {                                                               \
                *top = v;                                                                                             \
                *above = 255 - v;                                                                                 \
                *below = v;                                                                                           \
                for (uint32_t look = v & 7; look; look--)                                                             \
                    compiler_barrier();                                                                               \
                if (*top != v || *above != 255 - v || *below != v)                                                \
                    t->events++;                                                                                      \
                now.plain_done = (uint32_t)++t->ops;                                                                  \
            }                                                                                                         \
            *top = 0;                                                                                                 \
            return;                                                                                                   \
        }                                                                                                             \
        T own = (T)((T)1 << cpu % 8);                                                                                 \
        spin_until(now.plain_done, "the CPU that stores plainly");                                                    \
        for (uint32_t i = 0; i < rounds; i++)                                                                         \
            asm volatile(LOCK "xor" #S " %[v], %[m]" : [m] "+m"(*m) : [v] "q"(own) : "cc", "memory");                 \
        t->ops += rounds;                                                                                             \
        __atomic_sub_fetch(&now.working, 1, __ATOMIC_SEQ_CST);                                                        \
    }

/* Both halves of the word count up together under LOCK. The last CPU reads the halves one after the other, each with a
   plain load: what it sees may only get newer. A locked operation done in two steps would show the halves apart.
   (No half may wrap, so the rounds are cut to what fits 15 bits; and 8-bit halves would be too small to bother.) */
#define PLAIN_LOADS(S, T, HALF, ONE)                                                                                  \
    static void plain_loads_##S(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)                  \
    {                                                                                                                 \
        volatile T *m = word;                                                                                         \
        volatile HALF *low = word, *high = (volatile HALF *)word + 1;                                                 \
        if (cpu == now.cpus - 1) {                                                                                    \
            while (now.working > 0) {                                                                                 \
                HALF a = *low, b = *high, c = *low;                                                                   \
                if ((HALF)(b - a) > (HALF)~0u / 2 || (HALF)(c - b) > (HALF)~0u / 2)                                   \
                    t->events++;                                                                                      \
                now.plain_done = (uint32_t)++t->ops;                                                                  \
            }                                                                                                         \
            return;                                                                                                   \
        }                                                                                                             \
        T one = ONE;                                                                                                  \
        spin_until(now.plain_done, "the CPU that loads plainly");                                                     \
        rounds = rounds * (now.cpus - 1) < 32767 ? rounds : 32767 / (now.cpus - 1);                                   \
        for (uint32_t i = 0; i < rounds; i++)                                                                         \
            asm volatile(LOCK "add" #S " %[v], %[m]" : [m] "+m"(*m) : [v] "r"(one) : "cc", "memory");                 \
        t->ops += rounds;                                                                                             \
        __atomic_sub_fetch(&now.working, 1, __ATOMIC_SEQ_CST);                                                        \
    }

#define ALL_WIDTHS(S, T, BIG, I)                                        \
    ARITHMETIC(add, add, S, T, BIG, "", 0)                              \
    ARITHMETIC(adc, adc, S, T, BIG, "stc; ", 1)                         \
    ARITHMETIC(sub, sub, S, T, BIG, "", 0)                              \
    ARITHMETIC(sbb, sbb, S, T, BIG, "stc; ", 1)                         \
    STEP(inc, S, T, z)                                                  \
    STEP(dec, S, T, z)                                                  \
    STEP(neg, S, T, s)                                                  \
    NOT(S, T)                                                           \
    OWN_BITS(or_and, S, T, DO_OR, DO_AND, I)                            \
    OWN_BITS(xor, S, T, DO_XOR, DO_XOR, I)                              \
    XADD(S, T)                                                          \
    CMPXCHG(S, T)                                                       \
    XCHG(S, T)
#define FROM_16_BITS(S, T, I)                                           \
    OWN_BITS(bts_btr, S, T, DO_BTS, DO_BTR, I)                          \
    OWN_BITS(btc, S, T, DO_BTC_UP, DO_BTC_DOWN, I)                      \
    PLAIN_STORES(S, T)

ALL_WIDTHS(b, uint8_t, 0x9B, "qi")
ALL_WIDTHS(w, uint16_t, 0x9BCD, "ri")
ALL_WIDTHS(l, uint32_t, 0x9BCDEF01, "ri")
FROM_16_BITS(w, uint16_t, "ri")
FROM_16_BITS(l, uint32_t, "ri")
PLAIN_LOADS(l, uint32_t, uint16_t, 0x00010001)
#ifdef __x86_64__
ALL_WIDTHS(q, uint64_t, 0x7BCDEF01, "re")
FROM_16_BITS(q, uint64_t, "re")
PLAIN_LOADS(q, uint64_t, uint32_t, 0x0000000100000001)
#endif

/* cmpxchg8b and 16b: the upper half is always the complement of the lower one, so a torn read or write shows. */
static void cmpxchg8b_(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)
{
    (void)cpu;
    volatile uint64_t *m = word;
    uint32_t low = (uint32_t)now.start_value, high = (uint32_t)(now.start_value >> 32), attempts = 0;
    for (uint32_t i = 0; i < rounds;) {
        uint32_t a = low, d = high, next = low + 1;
        uint8_t done;
        asm volatile(LOCK "cmpxchg8b %[m]; setz %[f]" : [m] "+m"(*m), "+a"(a), "+d"(d), [f] "=m"(done) : "b"(next), "c"(~next) : "cc", "memory");
        if (d != ~a || done != (a == low))
            t->events++;
        i += done;
        low = done ? next : a;
        high = done ? ~next : d;
        check(++attempts < 1u << 30, "cmpxchg8b hardly ever succeeds");
    }
    t->ops += rounds;
}

static bool law_8b(void)
{
    struct tally t = total();
    uint64_t v = final_word();
    law(t.events == 0, "%llu times it tore, or its flag did not fit its value", (unsigned long long)t.events);
    law((uint32_t)v == (uint32_t)(now.start_value + t.ops), "off by %d", (int)((uint32_t)v - (uint32_t)(now.start_value + t.ops)));
    return true;
}

#ifdef __x86_64__
static void cmpxchg16b_(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t)
{
    (void)cpu;
    uint64_t low = now.start_value, high = ~low;
    uint32_t attempts = 0;
    for (uint32_t i = 0; i < rounds;) {
        uint64_t a = low, d = high, next = low + 1;
        uint8_t done;
        asm volatile(LOCK "cmpxchg16b (%[m]); setz %[f]" : "+a"(a), "+d"(d), [f] "=m"(done) : [m] "r"(word), "b"(next), "c"(~next) : "cc", "memory");
        if (d != ~a || done != (a == low))
            t->events++;
        i += done;
        low = done ? next : a;
        high = done ? ~next : d;
        check(++attempts < 1u << 30, "cmpxchg16b hardly ever succeeds");
    }
    t->ops += rounds;
}
#endif

/* ---- the list ---- */

typedef void (*body_t)(volatile void *word, uint32_t rounds, uint32_t cpu, struct tally *t);
struct test {
    const char *name;
    bool (*law)(void);
    body_t b, w, l, q;
    uint64_t start;                                     /* initial value, cut to the width */
    bool plain;                                         /* one CPU does plain accesses: two CPUs needed */
};

#ifdef __x86_64__
#define Q(f) f
#else
#define Q(f) 0
#endif
#define ALL(f) f##_b, f##_w, f##_l, Q(f##_q)
#define FROM16(f) 0, f##_w, f##_l, Q(f##_q)

static const struct test tests[] = {
    { "add",          law_sum_up,        ALL(add),             0x7766554433221100, false },
    { "adc",          law_sum_up,        ALL(adc),             0x7766554433221100, false },
    { "sub",          law_sum_down,      ALL(sub),             0x7766554433221100, false },
    { "sbb",          law_sum_down,      ALL(sbb),             0x7766554433221100, false },
    { "inc",          law_inc,           ALL(inc),             0xFFFFFFFFFFFFFF00, false },
    { "dec",          law_dec,           ALL(dec),             0x64, false },
    { "neg",          law_neg,           ALL(neg),             0x1, false },
    { "not",          law_not,           ALL(not),             0, false },
    { "or,and",       law_own_bits,      ALL(or_and),          0, false },
    { "xor",          law_own_bits,      ALL(xor),             0, false },
    { "bts,btr",      law_own_bits,      FROM16(bts_btr),      0, false },
    { "btc",          law_own_bits,      FROM16(btc),          0, false },
    { "xadd",         law_xadd,          ALL(xadd),            0xFFFFFFFFFFFFFF00, false },
    { "cmpxchg",      law_count,         ALL(cmpxchg),         0xFFFFFFFFFFFFFF00, false },
    { "xchg",         law_tokens,        ALL(xchg),            0, false },
    { "xchg-as-lock", law_plain_counter, ALL(xchg_lock),       0, false },
    { "xor+stores",   law_no_events,     FROM16(plain_stores), 0, true },
    { "add+loads",    law_no_events,     0, 0, plain_loads_l, Q(plain_loads_q), 0, true },
};

/* ---- running them ---- */

static void work(void *unused)
{
    (void)unused;
    uint32_t cpu = cpu_index();
    tallies[cpu].held = cpu + 1;
    barrier(&now.barrier, now.cpus);
    if (now.plain_test) {
        now.body(now.word, now.rounds, cpu, &tallies[cpu]);
        return;
    }
    /* Whoever has done its rounds goes on until all have: so nobody's rounds are without contention. But not for long:
       with more CPUs than the host has, those who still have to work need the place. */
    uint32_t chunk = now.rounds / 8 + 1, done = 0;
    uint64_t enough = ~0ull;
    while (done < now.rounds || (now.working && rdtsc() < enough)) {
        now.body(now.word, chunk, cpu, &tallies[cpu]);
        if (done < now.rounds && done + chunk >= now.rounds) {
            __atomic_sub_fetch(&now.working, 1, __ATOMIC_SEQ_CST);
            enough = rdtsc() + us_to_tsc(5000);
        }
        done += chunk;
    }
}

static uint32_t lines, rounds_aligned, rounds_split;
static uint64_t all_ops;

static void run_one(const char *name, bool (*the_law)(void), body_t body, uint32_t width, const char *where, uint32_t offset,
                    uint32_t rounds, uint64_t start, bool plain)
{
    memset(tallies, 0, sizeof tallies);
    memset(arena, 0, 2 * PAGE_SIZE);
    now.word = arena + offset;
    now.width = width;
    now.rounds = rounds;
    now.cpus = ncpus;
    now.body = body;
    now.start_value = start & mask_of(width > 64 ? 64 : width);
    now.plain = 0;
    now.plain_test = plain;
    now.plain_done = 0;
    now.working = plain ? ncpus - 1 : ncpus;
    memcpy((void *)now.word, &now.start_value, width >= 64 ? 8 : width / 8);
    if (width == 128) {
        uint64_t high = ~now.start_value;
        memcpy((void *)(now.word + 8), &high, 8);
    }
    run_on_first(now.cpus, work, 0);
    uint64_t ops = total().ops;
    char what[24];
    snprintf(what, sizeof what, "%s%s", memcmp(name, "xchg", 4) ? "lock " : "", name);
    check(the_law(), "%s %u %s: %s", what, width, where, reason);
    printf("%-16s %3u %-9s %u CPU%s %9llu ops  ok\n", what, width, where, ncpus, ncpus == 1 ? " " : "s", (unsigned long long)ops);
    lines++;
    all_ops += ops;
}

/* aligned; odd address within one cache line; across a line; across a page (split at another byte than across a line) */
static void run_everywhere(const char *name, bool (*the_law)(void), body_t body, uint32_t width, uint64_t start, bool plain)
{
    uint32_t bytes = width / 8;
    if (!body || !option_is("width", width == 8 ? "8" : width == 16 ? "16" : width == 32 ? "32" : width == 64 ? "64" : "128"))
        return;
    if (option_is("at", "aligned"))
        run_one(name, the_law, body, width, "aligned", 0x100, rounds_aligned, start, plain);
    if (bytes == 1 || bytes == 16)                      /* a byte cannot be split, cmpxchg16b must not be */
        return;
    if (option_is("at", "unaligned"))
        run_one(name, the_law, body, width, "unaligned", 0x181, rounds_split, start, plain);
    if (option_is("at", "line"))
        run_one(name, the_law, body, width, "line", 0x140 - bytes / 2, rounds_split, start, plain);
    if (option_is("at", "page"))
        run_one(name, the_law, body, width, "page", PAGE_SIZE - (plain ? bytes / 2 : 1), rounds_split, start, plain);
}

static void flush_tlb(void *unused) { (void)unused; drop_all_pages(); }

static uint32_t sb_seen;
static uint64_t litmus_slots;

static void run_litmus(void)
{
    static struct litmus_result r;
    uint32_t slots = option_number("litmus", 200000) * scale, max_ms = option_number("litmus_ms", 1000) * scale;
    for (uint32_t i = 0; i < litmus_count; i++) {
        const struct litmus *t = &litmus_tests[i];
        if (!option_is("only", t->name) && !(option_text("only") && option_is("only", "litmus")))
            continue;
        if (ncpus < t->threads) {
            printf("litmus %-10s needs %u CPUs: skipped\n", t->name, t->threads);
            continue;
        }
        litmus_run(t, i, slots, max_ms, &r);            /* another set of CPUs for each test */
        char histogram[200] = "";
        uint32_t at = 0;
        for (uint32_t key = 0; key < array_size(r.histogram); key++)
            if (r.histogram[key]) {
                char outcome[16];
                litmus_outcome_text(t, key, outcome, sizeof outcome);
                if (at < sizeof histogram - 24)
                    at += (uint32_t)snprintf(histogram + at, sizeof histogram - at, " %s:%u", outcome, r.histogram[key]);
            }
        char marked[16];
        uint32_t key = 0;
        for (uint32_t k = 0; k < t->n_seen; k++)
            key = key * 3 + t->marked[k];
        litmus_outcome_text(t, key, marked, sizeof marked);
        printf("litmus %-10s %8u rounds  (%s)%s\n", t->name, r.slots, t->seen_names, histogram);
        if (t->allowed)
            printf("litmus %-10s   %s is allowed: %s\n", t->name, marked, r.marked ? "seen  ok" : "not seen this time  ok");
        check(t->allowed || !r.marked, "litmus %s {%s}: forbidden outcome %s=%s seen %u times in %u", t->name, t->program, t->seen_names,
              marked, r.marked, r.slots);
        if (i == 0)
            sb_seen = r.marked;
        litmus_slots += r.slots;
        lines++;
    }
}

void guest_main(void)
{
    arena = (void *)FREE_VA;
    uint8_t *memory = alloc_pages(2);
    map_page(FREE_VA, (uintptr_t)memory + PAGE_SIZE, PTE_W);
    map_page(FREE_VA + PAGE_SIZE, (uintptr_t)memory, PTE_W);
    run_on_all(flush_tlb, 0);
    rounds_aligned = option_number("rounds", ncpus > 4 ? 4000 : 10000) * scale;
    rounds_split = option_number("split", ncpus > 4 ? 100 : 300) * scale;

    for (uint32_t i = 0; i < array_size(tests); i++) {
        const struct test *t = &tests[i];
        if (!option_is("only", t->name) || (t->plain && ncpus == 1))
            continue;
        run_everywhere(t->name, t->law, t->b, 8, t->start, t->plain);
        run_everywhere(t->name, t->law, t->w, 16, t->start, t->plain);
        run_everywhere(t->name, t->law, t->l, 32, t->start, t->plain);
        run_everywhere(t->name, t->law, t->q, 64, t->start, t->plain);
    }
    if (option_is("only", "cmpxchg8b"))
        run_everywhere("cmpxchg8b", law_8b, cmpxchg8b_, 64, 0x0000007FFFFFFF80, false);
#ifdef __x86_64__
    if (option_is("only", "cmpxchg16b") && cpuid(1, 0).ecx >> 13 & 1)
        run_everywhere("cmpxchg16b", law_count, cmpxchg16b_, 128, 0xFFFFFFFFFFFFFF00, false);
#endif
    run_litmus();
    check(lines, "nothing on the list is called that");
    if (option("expect-sb") && ncpus > 1)
        check(sb_seen, "expect-sb: the relaxed outcome of SB was never seen");
    pass("%u kinds, %llu operations, none lost; %llu litmus rounds, 0 forbidden, SB relaxed %u times%s", lines, (unsigned long long)all_ops,
         (unsigned long long)litmus_slots, sb_seen, ncpus == 1 ? "; 1 CPU, so nobody to contend with" : "");
}
