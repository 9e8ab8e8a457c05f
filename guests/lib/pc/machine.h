/* What a PC alone has. guest.h includes it; only pc guests may use what is in here beyond the first two groups. */
#ifndef MACHINE_H
#define MACHINE_H
#include "layout.h"
#include "x86.h"
#define MACHINE_PC

struct machine_cpu {
    uint32_t apic_id;
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
};

/* ---- interrupts on and off ---- */
static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void sti(void) { asm volatile("sti" : : : "memory"); }
static inline void hlt(void) { asm volatile("hlt" : : : "memory"); }
/* STI holds interrupts off for one more instruction, so nothing can slip in between: no wake-up is lost. */
static inline void sti_hlt(void) { asm volatile("sti; hlt" : : : "memory"); }
static inline bool irqs_on(void) { return read_flags() & FLAG_IF; }
static inline reg_t irq_save(void) { reg_t f = read_flags(); cli(); return f; }
static inline void irq_restore(reg_t f) { if (f & FLAG_IF) sti(); }
static inline void stand_still(void) { asm volatile("cli; hlt"); }

/* ---- page faults and TLB ---- */
static inline reg_t fault_address(void) { return read_cr2(); }
static inline void drop_page(const volatile void *p) { invlpg(p); }     /* of this CPU's TLB */
static inline void drop_all_pages(void) { write_cr3(read_cr3()); }

#ifdef __x86_64__
#define PTE_NX (1ul << 63)
#else
#define PTE_NX 0ul
#endif
extern bool has_nx;
#define FREE_VA 0xD0000000ul                            /* 256 MB of addresses for map_page(): neither memory nor device is
                                                           there, so until then reads give ones and writes vanish */

/* ---- descriptor tables (tables.c) ---- */
struct cpu;
void idt_gate(uint32_t vector, uint32_t dpl, uint32_t ist);  /* interrupt gate to the usual stub; ist: 64-bit only */
void idt_raw(uint32_t vector, const void *gate);        /* 8 bytes (32-bit) or 16 bytes (64-bit) as you like */
void setup_cpu_tables(struct cpu *c);
void setup_idt(void);
uint32_t discover_cpus(uint32_t *apic_ids, uint32_t max, const char **source);
_Noreturn void leave(uint8_t value);                    /* debug-exit */

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
enum { VECTOR_NMI = 2, VECTOR_SPURIOUS = 0xFF };
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
void ipi_nmi(uint32_t cpu);
void lapic_timer(uint32_t mode, uint32_t vector, uint32_t count, uint32_t divide);  /* count 0 stops it */
bool has_tsc_deadline(void);
static inline void irq_done(void) { lapic_eoi(); }             /* the end of every handler of an interrupt */
static inline volatile uint32_t *slow_word(void) { return &lapic_base[LAPIC_ID / 4]; }  /* reading it takes long */

extern uint32_t lapic_khz;                              /* timer ticks per ms with DIVIDE_BY_1 */
void calibrate(void);
#endif
