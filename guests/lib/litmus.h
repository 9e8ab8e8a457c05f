/* Memory-ordering litmus tests: tiny programs on two to four CPUs, run millions of times, outcomes counted. */
#ifndef LITMUS_H
#define LITMUS_H
#include "guest.h"

enum { SEEN_X = 8, SEEN_Y = 9 };                        /* else: 2 * thread + register (0: a, 1: b) */

struct litmus_slot;
struct litmus_regs { uint32_t a, b; };
typedef void (*litmus_thread_t)(struct litmus_slot *slots, struct litmus_regs *regs, uint32_t n, const uint8_t *wobble);

struct litmus {
    const char *name, *program;                         /* program: one line for people */
    uint32_t threads;
    litmus_thread_t code[4];
    uint32_t n_seen;
    uint8_t seen[4];                                    /* what makes up the outcome */
    const char *seen_names;
    uint8_t marked[4];                                  /* the outcome that the test is about */
    bool allowed;                                       /* by x86-TSO */
};

struct litmus_result {
    uint32_t slots, marked, us;
    uint32_t histogram[81];                             /* base 3, the first observed value being the highest digit */
};

extern const struct litmus litmus_tests[];
extern const uint32_t litmus_count;
const struct litmus *litmus_find(const char *name);

/* Thread t runs on CPU (base + t) % ncpus. Ends after `slots` rounds or max_ms, whatever comes first. */
void litmus_run(const struct litmus *test, uint32_t base, uint32_t slots, uint32_t max_ms, struct litmus_result *result);
uint32_t litmus_outcome_text(const struct litmus *test, uint32_t key, char *out, size_t size);
#endif
