/* The whole interface of the guest library. A guest defines guest_name and guest_main(); see README.md. */
#ifndef GUEST_H
#define GUEST_H
#include <stdarg.h>
#include "layout.h"
#include "x86.h"

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
    uint32_t index, apic_id;
    volatile uint32_t online;
    job_t volatile job;                         /* written by the CPU that gives work, cleared by this one when done */
    void *volatile job_arg;
    volatile uint32_t sleeping;                 /* see sleep_until() */
    volatile uint32_t naps;                     /* how often sleep_until() really halted */
    bool timer_taken;                           /* the guest uses this CPU's APIC timer: the library keeps off */
    char line[256];                             /* printf collects one line here, or a piece of a longer one */
    uint32_t line_length;
    uint64_t gdt[GDT_SLOTS];
    struct tss {
#ifdef __x86_64__
        uint32_t reserved0;
        uint64_t rsp[3], reserved1, ist[7], reserved2;
        uint16_t reserved3, iomap_base;
#else
        uint32_t link, esp0, ss0, rest[22];
        uint16_t trap, iomap_base;
#endif
        uint8_t iomap[128 + 1];                 /* ports 0 … 0x3FF for ring 3: a 1 forbids (all 1 at start) */
    } __attribute__((packed)) tss;
    uint8_t *stack_top;
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

void start_cpus(void);
void run_on(uint32_t cpu, job_t job, void *arg);        /* give work to an idle CPU and return at once */
void wait_done(uint32_t cpu);                           /* until that work is done */
void run_on_all(job_t job, void *arg);                  /* every CPU, this one too; returns when all are done */
void run_on_first(uint32_t n, job_t job, void *arg);    /* the same for CPUs 0 … n-1 */
uint32_t discover_cpus(uint32_t *apic_ids, uint32_t max, const char **source);

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

void on_vector(uint32_t vector, handler_t handler);     /* 0: unexpected again. APIC handlers call lapic_eoi() */
void idt_gate(uint32_t vector, uint32_t dpl, uint32_t ist);  /* interrupt gate to the usual stub; ist: 64-bit only */
void idt_raw(uint32_t vector, const void *gate);        /* 8 bytes (32-bit) or 16 bytes (64-bit) as you like */
void setup_cpu_tables(struct cpu *c);
void setup_idt(void);
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

/* ---- local APIC (lapic.c) ---- */
enum { LAPIC_ID = 0x20, LAPIC_VERSION = 0x30, LAPIC_TPR = 0x80, LAPIC_PPR = 0xA0, LAPIC_EOI = 0xB0, LAPIC_LDR = 0xD0,
       LAPIC_DFR = 0xE0, LAPIC_SVR = 0xF0, LAPIC_ISR = 0x100, LAPIC_TMR = 0x180, LAPIC_IRR = 0x200, LAPIC_ESR = 0x280,
       LAPIC_ICR = 0x300, LAPIC_ICR_HIGH = 0x310, LAPIC_LVT_TIMER = 0x320, LAPIC_LVT_LINT0 = 0x350,
       LAPIC_LVT_LINT1 = 0x360, LAPIC_LVT_ERROR = 0x370, LAPIC_TIMER_INIT = 0x380, LAPIC_TIMER_COUNT = 0x390,
       LAPIC_TIMER_DIVIDE = 0x3E0 };
enum { ICR_FIXED = 0, ICR_NMI = 0x400, ICR_INIT = 0x500, ICR_STARTUP = 0x600, ICR_LOGICAL = 0x800, ICR_PENDING = 0x1000,
       ICR_ASSERT = 0x4000, ICR_SELF = 0x40000, ICR_ALL = 0x80000, ICR_OTHERS = 0xC0000 };
enum { TIMER_ONESHOT = 0, TIMER_PERIODIC = 0x20000, TIMER_TSC_DEADLINE = 0x40000, TIMER_MASKED = 0x10000 };
enum { DIVIDE_BY_1 = 0xB, DIVIDE_BY_2 = 0, DIVIDE_BY_16 = 3, DIVIDE_BY_128 = 0xA };
enum { VECTOR_NMI = 2, VECTOR_WAKE = 0xF0, VECTOR_TICK = 0xF1, VECTOR_SPURIOUS = 0xFF };  /* the library's own */
#define MSR_TSC_DEADLINE 0x6E0

extern volatile uint32_t *lapic_base;
static inline uint32_t lapic_read(uint32_t reg) { return lapic_base[reg / 4]; }
static inline void lapic_write(uint32_t reg, uint32_t v) { lapic_base[reg / 4] = v; }
static inline bool lapic_bit(uint32_t reg, uint32_t vector)     /* of ISR, TMR or IRR */
{
    return lapic_read(reg + vector / 32 * 0x10) >> vector % 32 & 1;
}
void lapic_setup(void);
void lapic_eoi(void);
void lapic_icr(uint32_t destination, uint32_t low);     /* waits until it is sent */
void ipi(uint32_t cpu, uint32_t vector);                /* fixed, physical */
void ipi_nmi(uint32_t cpu);
void lapic_timer(uint32_t mode, uint32_t vector, uint32_t count, uint32_t divide);  /* count 0 stops it */
bool has_tsc_deadline(void);
void nmi_default(struct trap *t);

/* ---- time (time.c) ---- */
extern uint32_t tsc_khz, lapic_khz;                     /* lapic_khz: timer ticks per ms with DIVIDE_BY_1 */
extern const char *tsc_source;
void calibrate(void);
void delay_us(uint32_t us);
uint64_t us_to_tsc(uint32_t us);
uint32_t tsc_to_us(uint64_t cycles);                    /* saturates */
uint64_t div64(uint64_t n, uint32_t d);                 /* there is no libgcc for the 32-bit build */
uint64_t mul_div(uint64_t a, uint32_t b, uint32_t c);   /* a * b / c, a * b below 2^64 */

/* ---- memory (page.c) ---- */
#define PTE_P 1u
#define PTE_W 2u
#define PTE_U 4u
#define PTE_A 0x20u
#define PTE_D 0x40u
#define PTE_LARGE 0x80u
#define PTE_G 0x100u
#ifdef __x86_64__
#define PTE_NX (1ul << 63)
#else
#define PTE_NX 0ul
#endif
#define FREE_VA 0xD0000000ul                            /* 256 MB of addresses for map_page(): neither memory nor device is
                                                           there, so until then reads give ones and writes vanish */

extern reg_t page_root[];
extern bool has_nx;
extern uint64_t memory_bytes;                           /* in the largest region */
void setup_memory(uint32_t magic, reg_t info);
void *alloc_page(void);                                 /* zeroed; its address is also its physical address */
void *alloc_pages(uint32_t n);                          /* contiguous; never freed */
void free_page(void *page);
reg_t *pte_of(reg_t va, bool create);                   /* the 4 KB entry; splits a large page if create, else 0 */
void map_page(reg_t va, reg_t pa, reg_t flags);         /* PTE_P is added; flushes this CPU's TLB entry only */
void unmap_page(reg_t va);

/* ---- command line ---- */
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
_Noreturn void leave(uint8_t value);                    /* debug-exit */
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
