/* The whole interface of the guest library. A guest defines guest_name and guest_main(); see README.md. */
#ifndef GUEST_H
#define GUEST_H
#include <stdarg.h>
#include "x86.h"
#include "machine.h"                            /* of lib/pc or lib/lguest: the Makefile says which */

#define MAX_CPUS 32
#define PAGE_SIZE 4096u
#define array_size(a) (sizeof(a) / sizeof((a)[0]))

/* ---- what the guest gives ---- */
extern const char guest_name[];
void guest_main(void);                          /* runs on CPU 0, interrupts on, all other CPUs idle */

/* ---- CPUs (smp.c, cpus.c) ---- */
typedef void (*job_t)(void *arg);

struct cpu {
    struct cpu *self;                           /* first, so that %fs:0 finds it */
    uint32_t index;
    uint8_t *stack_top;
    struct machine_cpu m;                       /* what this machine needs for each CPU: machine.h */
    volatile uint32_t online;
    job_t volatile job;                         /* written by the CPU that gives work, cleared by this one when done */
    void *volatile job_arg;
    volatile uint32_t sleeping;                 /* see sleep_until() */
    volatile uint32_t naps;                     /* how often sleep_until() really halted */
    bool timer_taken;                           /* the guest uses this CPU's timer: the library keeps off */
    char line[257];                             /* printf collects one line here, or a piece of a longer one */
    uint32_t line_length;
};

extern struct cpu cpus[MAX_CPUS];
extern uint32_t ncpus;

static inline struct cpu *this_cpu(void)
{
    struct cpu *c;
    asm volatile("mov %%fs:0, %0" : "=r"(c));
    return c;
}
static inline uint32_t cpu_index(void) { return this_cpu()->index; }
extern const char machine_name[], cpu_id_name[], cpu_waking[];  /* for people: "pc", "APIC ID", "INIT-SIPI-SIPI" */
uint32_t cpu_id(void);                                  /* what the machine calls this CPU */

void read_options(void);
void announce(const char *source);                      /* the first line that a guest prints; source: of the CPUs */
_Noreturn void idle(struct cpu *c);
void run_on(uint32_t cpu, job_t job, void *arg);        /* give work to an idle CPU and return at once */
void wait_done(uint32_t cpu);                           /* until that work is done */
void run_on_all(job_t job, void *arg);                  /* every CPU, this one too; returns when all are done */
void run_on_first(uint32_t n, job_t job, void *arg);    /* the same for CPUs 0 … n-1 */

/* ---- waiting ----
 * Both end the guest with a FAIL sentence when the condition has not come true within wait_seconds.
 * spin_until: for short waits. sleep_until: spins a little, then halts; whoever makes the condition true calls
 * wake(cpu) afterwards. With interrupts off sleep_until only spins. */
extern uint32_t wait_seconds;
struct wait { uint32_t spins; uint64_t start; const char *what; };
bool wait_spin(struct wait *w, bool may_halt);          /* false: time to halt */
void wait_halt_begin(void);
void wait_halt(void);
void wait_halt_end(void);
void wake(uint32_t cpu);

#define spin_until(condition, description) do {                                     \
        struct wait w_ = { 0, 0, (description) };                                   \
        while (!(condition))                                                        \
            wait_spin(&w_, false);                                                  \
    } while (0)

#define sleep_until(condition, description) do {                                    \
        struct wait w_ = { 0, 0, (description) };                                   \
        while (!(condition)) {                                                      \
            if (wait_spin(&w_, true))                                               \
                continue;                                                           \
            wait_halt_begin();          /* interrupts off, "I sleep" is visible */  \
            if (!(condition))           /* so this re-check cannot miss a wake() */ \
                wait_halt();                                                        \
            wait_halt_end();                                                        \
        }                                                                           \
    } while (0)

struct lock { volatile uint32_t held; };
void lock(struct lock *l);
bool try_lock(struct lock *l);
void unlock(struct lock *l);

struct barrier { volatile uint32_t arrived, phase; };
void barrier(struct barrier *b, uint32_t n);            /* waits in sleep_until() */
void spin_barrier(struct barrier *b, uint32_t n);       /* never halts: all leave it within a few hundred cycles */

/* ---- interrupts and exceptions (trap.c) ---- */
struct trap {
    reg_t ds, es, fs, gs;
#ifdef __x86_64__
    reg_t r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
#else
    reg_t di, si, bp, unused, bx, dx, cx, ax;
#endif
    reg_t vector, error, ip, cs, flags;
    reg_t sp, ss;                               /* 32-bit: only there when the interrupted code was in ring 3 */
};
typedef void (*handler_t)(struct trap *t);

enum { VECTOR_WAKE = 0xF0, VECTOR_TICK = 0xF1 };        /* the library's own */
void on_vector(uint32_t vector, handler_t handler);     /* 0: unexpected again */
uint64_t segment(uint32_t base, uint32_t limit, uint32_t access, uint32_t flags);       /* a descriptor */
void trap_dispatch(struct trap *t);
_Noreturn void unexpected_trap(struct trap *t);

/* ---- code that is expected to trap (run.c) ----
 * run_code() loads the registers of r->t (cs says which ring: SEL_KCODE, or SEL_UCODE.. | 3 with sp and ss) and comes back
 * with the registers, vector and error of the first trap whose vector was given to catch(). Code ends with int $END. */
struct run { struct trap t; reg_t cr2; };
enum { END = 0x80 };
void run_code(struct run *r);
void catch(uint32_t vector);
void leave_code(struct trap *t);                        /* what catch() installs; own handlers may call it */
uint8_t *user_page(void);                               /* a new page that ring 3 may read, write and execute */

/* ---- interrupts between CPUs, and each CPU's timer (every machine has its own) ----
 * Handlers end with irq_done(). Who wants more of its machine than this looks into machine.h. */
void ipi(uint32_t cpu, uint32_t vector);
void ipi_self(uint32_t vector);
void ipi_others(uint32_t vector);                       /* to all but this CPU, in one go */
void ipi_all(uint32_t vector);
void timer_start(uint32_t vector, uint64_t ns);         /* one interrupt, ns from now; replaces what was armed before */
void timer_stop(void);

/* ---- time (time.c) ---- */
extern uint32_t tsc_khz;
extern const char *tsc_source;
void delay_us(uint32_t us);
uint64_t us_to_tsc(uint32_t us);
uint32_t tsc_to_us(uint64_t cycles);                    /* saturates */
uint64_t div64(uint64_t n, uint32_t d);                 /* there is no libgcc for the 32-bit build */
uint64_t mul_div(uint64_t a, uint32_t b, uint32_t c);   /* a * b / c, a * b below 2^64 */

/* ---- memory (page.c, and pages.c of each machine) ---- */
#define PTE_P 1u
#define PTE_W 2u
#define PTE_U 4u
#define PTE_A 0x20u
#define PTE_D 0x40u
#define PTE_LARGE 0x80u
#define PTE_G 0x100u

extern reg_t page_root[];
extern uint64_t memory_bytes;                           /* in the largest region */
void give_memory(uintptr_t from, uintptr_t to);         /* what alloc_page() may hand out */
void *alloc_page(void);                                 /* zeroed; its address is also its physical address */
void *alloc_pages(uint32_t n);                          /* contiguous; never freed */
void free_page(void *page);
reg_t *pte_of(reg_t va, bool create);                   /* the 4 KB entry; splits a large page if create, else 0 */
void map_page(reg_t va, reg_t pa, reg_t flags);         /* PTE_P is added; flushes this CPU's TLB entry only */
void unmap_page(reg_t va);

/* ---- command line (options.c) ---- */
extern char command_line[256];
bool option(const char *word);                          /* is the word there? */
uint32_t option_number(const char *name, uint32_t otherwise);   /* name=123 or 0x… */
const char *option_text(const char *name);              /* name=text, up to the next blank; 0 if absent */
bool option_is(const char *name, const char *text);     /* name=text there, or name= absent altogether */
extern uint32_t scale;                                  /* scale=N, 1 by default: multiplies the rounds */

/* ---- output and verdict (print.c) ---- */
/* Of any length; another CPU's line can come between the pieces of 256 characters of a longer one. */
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int vsnprintf(char *out, size_t size, const char *format, va_list args);
int snprintf(char *out, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
_Noreturn void pass(const char *summary, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void fail(const char *reason, ...) __attribute__((format(printf, 1, 2)));
void put_text(const char *s, size_t n);                 /* the machine's; s[n] is 0 */
_Noreturn void end_guest(bool passed, const char *line);        /* the machine's */
#define check(condition, ...) do { if (!(condition)) fail(__VA_ARGS__); } while (0)

void *memset(void *to, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* ---- small things ---- */
static inline uint32_t random32(uint32_t *state)        /* xorshift; the state must not be 0 */
{
    uint32_t x = *state;
    x ^= x << 13; x ^= x >> 17; x ^= x << 5;
    return *state = x;
}
#endif
