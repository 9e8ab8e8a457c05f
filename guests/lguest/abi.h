/* The lguest machine's own test: what it promises its guests, one subject a file (docs/lguest.md, docs/lguest-smp.md). */
#ifndef ABI_H
#define ABI_H
#include "guest.h"

enum when {
    ANY = 0,                                            /* with and without page tables */
    LINEAR = 1, PAGED = 2,
    ONLY_BY_NAME = 4,                                   /* not unless only=NAME: it ends the guest, or needs a device */
};
struct subject { const char *name; void (*run)(void); uint32_t when; };

/* Each file has one list. */
extern const struct subject call_subjects[], ring_subjects[], trap_subjects[], emulation_subjects[], fault_subjects[], user_subjects[],
    segment_subjects[], interrupt_subjects[], clock_subjects[], switcher_subjects[], smp_subjects[], kill_subjects[], kill_late_subjects[],
    block_subjects[], console_subjects[], rng_subjects[], net_subjects[], end_subjects[];

static inline struct lguest_data *my_data(void) { return &this_cpu()->m.data; }

/* ---- code that traps ---- */
/* Only at file level: a name for a piece of code that ends with int $END. */
#define SNIPPET(name, code) asm(".pushsection .text; " #name ": " code "; int $0x80; .popsection"); extern const uint8_t name[]
struct run ring1(const void *code);                     /* registers 0, interrupts on; the caller fills in more, then run_code() */
struct run ring3(uint32_t ip, uint32_t sp);
void run_to_trap(struct run *r, uint32_t vector, uint32_t error, const char *what);     /* and checks what it was */
uint32_t copy_to_user(uint8_t *page, const uint8_t *from, size_t n);    /* gives the address back */

/* ---- descriptors, as seen from here without a trap ---- */
bool limit_of(uint32_t selector, uint32_t *limit);      /* LSL; false: not ours */
bool rights_of(uint32_t selector, uint32_t *rights);    /* LAR */

/* Says what the Host is going to say, for who watches both. */
void expect_kill(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void survived(void);

/* ---- devices (devices.c, vring.c) ---- */
enum { DEVICE_NET = 1, DEVICE_BLOCK = 2, DEVICE_CONSOLE = 3, DEVICE_RNG = 4 };
enum { STATUS_ACK = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4, STATUS_FAILED = 0x80 };
struct vring {
    uint32_t physical, size, irq;
    uint16_t used_seen, free_head;
    struct { volatile uint32_t address, address_high, length; volatile uint16_t flags, next; } *desc;
    struct { volatile uint16_t flags, index, ring[]; } *avail;
    struct { volatile uint16_t flags, index; struct { volatile uint32_t id, length; } ring[]; } *used;
    volatile uint32_t interrupts;
    bool without_interrupts;
};
struct device {
    uint8_t *desc;
    uint32_t type, queues, feature_bytes, config_bytes, physical;
    struct vring queue[2];
};
struct piece { const volatile void *data; uint32_t length; bool for_device_to_write; };

uint8_t *device_page(void);
bool find_device(uint32_t type, uint32_t number, struct device *d);     /* parses the page */
void start_device(struct device *d, uint32_t features); /* the order that Linux has */
void reset_device(struct device *d);
uint32_t features_of(const struct device *d);
uint8_t *config_of(const struct device *d);
void vring_offer(struct vring *q, const struct piece *pieces, uint32_t n);
void vring_notify(struct vring *q);
bool vring_take(struct vring *q, uint32_t *length);
uint32_t vring_wait(struct vring *q, const char *what); /* until the next used buffer; its length */
#endif
