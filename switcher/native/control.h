/*
 * The control block: what the Host and the vCPU workers of one machine share
 * beside guest RAM.  This file is the only declaration of that layout and of
 * the Switcher's functions: the C files include it, and Python hands it to
 * cffi (switcher/binding.py) after dropping the preprocessor lines that are
 * not plain integer #defines.  So: only #define NAME integer, enums, structs
 * of fixed-width integers, and prototypes.
 *
 * Words marked [atomic] are shared by several processes without a lock; they
 * are touched through the functions below (or __atomic builtins in C), never
 * by plain Python stores.
 */
#ifndef SMPGUEST_CONTROL_H
#define SMPGUEST_CONTROL_H
#include <stdint.h>

#define SMP_MAGIC 0x534d5047
#define SMP_ABI 1
#define SMP_MAX_VCPUS 16
#define SMP_RING 256
#define SMP_POSTED 4096
#define SMP_BINDINGS 64
#define SMP_MMIO_RANGES 16
#define SMP_TEXT 240
/* The Switcher's pages (lguest): 1 of text, then 2 a vCPU; behind them a guard page. */
#define SMP_SWITCHER_TEXT_PAGES 1
#define SMP_SWITCHER_VCPU_PAGES 2
/* Their guest-physical address: beyond what a 32-bit page table can name. */
#define SMP_SWITCHER_PHYSICAL 0xff00000000
#define SMP_LAPIC_BASE 0xfee00000
#define SMP_IOAPIC_BASE 0xfec00000

/* A vCPU's life: written by its worker, except that the Host
 * writes CRASHED for a worker that can no longer speak. */
enum smp_state {
    SMP_PAUSED,          /* born here; also between pause and resume */
    SMP_RUNNING,         /* executing the Guest */
    SMP_HALTED,          /* HLT, or waiting for SIPI */
    SMP_IN_HOST,         /* waiting for the Host to answer its request */
    SMP_STOPPED,         /* left run_guest() in an orderly way */
    SMP_CRASHED          /* its worker died or failed */
};

/* Why smp_run() came back to run_guest(). */
enum smp_exit {
    SMP_EXIT_NONE,
    SMP_EXIT_HALT,       /* halted and nothing came during the spin */
    SMP_EXIT_STOP,       /* pause requested, or a signal asked the loop to look */
    SMP_EXIT_NOTIFY,     /* a notify that no eventfd claims: see request.address */
    SMP_EXIT_DEAD,       /* control.dead was set, by us or by somebody else */
    SMP_EXIT_TRAP,       /* lguest: the Guest came out through the Switcher; see its registers page */
    SMP_EXIT_ERROR       /* the engine failed: a Host error, see last_error */
};

/* Why the Guest is dead.  The first writer wins (smp_kill_guest). */
enum smp_dead {
    SMP_ALIVE,
    SMP_DEAD_POWEROFF,   /* the Guest powered off */
    SMP_DEAD_DEBUG_EXIT, /* it wrote `dead_code` to port 0xf4 */
    SMP_DEAD_RESTART,    /* it asked for a restart */
    SMP_DEAD_KILLED,     /* it misbehaved (triple fault, bad address ...) or panicked */
    SMP_DEAD_WORKER,     /* a vCPU worker failed or was killed */
    SMP_DEAD_HOST,       /* the Host failed */
    SMP_DEAD_TIMEOUT,    /* --timeout ran out */
    SMP_DEAD_INTERRUPTED,/* Ctrl-C, SIGTERM or a closed terminal (dead_code: the signal) */
    SMP_DEAD_STOPPED     /* stopped from the Python API */
};

/* What a worker asks of the Host through its mailbox. */
enum smp_request_kind {
    SMP_REQ_NONE, SMP_REQ_PIO_READ, SMP_REQ_PIO_WRITE, SMP_REQ_MMIO_READ, SMP_REQ_MMIO_WRITE,
    SMP_REQ_NOTIFY       /* lguest: a NOTIFY that no eventfd claims */
};
/* Mailbox word: IDLE -> (worker) ASKED -> (Host) ANSWERED -> (worker) IDLE. */
enum smp_mailbox { SMP_MAIL_IDLE, SMP_MAIL_ASKED, SMP_MAIL_ANSWERED };

/* Attributes of an I/O port, set by the Host before the Guest runs; they may be combined.
 * A read takes SHADOW, else SYNC; a write takes POSTED, else SYNC.
 * 0: nobody is there: reads give all ones, writes are dropped, in the Switcher. */
#define SMP_PORT_SYNC 1     /* goes to the Host through the mailbox */
#define SMP_PORT_POSTED 2   /* writes are posted to the ring: no answer needed */
#define SMP_PORT_SHADOW 4   /* reads are answered from port_shadow[] */

/* Posted to the Host, in the order the vCPUs did it. */
enum smp_posted_kind {
    SMP_POST_NONE, SMP_POST_PIO_WRITE, SMP_POST_EOI,
    SMP_POST_TAKER             /* a local APIC may now take what nobody took: see smp_want_taker */
};

/* Delivery modes and destination of an interrupt message (SDM 11.6.1 ICR, 11.11 MSI). */
enum smp_delivery {
    SMP_DELIVER_FIXED = 0, SMP_DELIVER_LOWEST = 1, SMP_DELIVER_SMI = 2, SMP_DELIVER_NMI = 4,
    SMP_DELIVER_INIT = 5, SMP_DELIVER_SIPI = 6, SMP_DELIVER_EXTINT = 7
};

/* Call sites of the Big Lock, each with its own wait and hold times. */
enum smp_site {
    SMP_SITE_LIFECYCLE, SMP_SITE_BUS, SMP_SITE_IRQ, SMP_SITE_NOTIFY, SMP_SITE_OTHER, SMP_SITES
};

/* events: per-vCPU happenings that are not fixed interrupts [atomic bitmap] */
#define SMP_EVENT_NMI 1
#define SMP_EVENT_INIT 2
#define SMP_EVENT_SIPI 4
#define SMP_EVENT_TIMER 8      /* the local APIC timer's host timer expired */
#define SMP_EVENT_STOP 16      /* leave smp_run() and look at pause/signals */

#define SMP_EVENT_IRQ 64       /* lguest: irqs_pending got a bit */
#define SMP_EVENT_UP 128       /* lguest: this vCPU is to start */

/* Which machine: what the Guest sees of its CPU. */
enum smp_machine { SMP_MACHINE_PC, SMP_MACHINE_LGUEST };

struct smp_lock_stats {
    uint64_t count;
    uint64_t contended;
    uint64_t wait_ns;
    uint64_t hold_ns;
    uint64_t max_hold_ns;
    uint64_t recovered;        /* times the lock was taken over from a dead holder */
};

struct smp_posted {
    uint32_t ready;            /* [atomic] ticket + 1 once this lap's entry is complete */
    uint16_t kind;
    uint8_t size;
    uint8_t vcpu;
    uint64_t address;          /* port, or vector for EOI */
    uint64_t data;
};

/* One eventfd bound to an address (KVM's ioeventfd, lguest's LHREQ_EVENTFD). */
struct smp_binding {
    uint32_t used;
    uint32_t kind;             /* enum smp_request_kind of the write it claims; 0 = NOTIFY */
    uint64_t address;
    int32_t fd;                /* created before the workers are forked: same number in all */
    uint32_t count;
};

struct smp_mmio_range { uint64_t base; uint64_t size; };

struct smp_request {
    uint32_t mail;             /* [atomic, futex] enum smp_mailbox */
    uint32_t kind;
    uint64_t address;
    uint64_t data;
    uint32_t size;             /* bytes: 1, 2, 4, 8 */
    uint32_t pad;
};

/* Exits per reason and other counts; only the owning vCPU writes. */
struct smp_counters {
    uint64_t runs;             /* entries into the Guest from run_guest() */
    uint64_t halts;
    uint64_t halt_sleeps;      /* halts that outlived the spin */
    uint64_t pio_sync;
    uint64_t pio_posted;
    uint64_t pio_native;       /* answered in the Switcher */
    uint64_t mmio_host;
    uint64_t mmio_lapic;
    uint64_t mmio_none;
    uint64_t interrupts;       /* vectors delivered */
    uint64_t exceptions;
    uint64_t ipis_sent;
    uint64_t nmis;
    uint64_t timer_fires;
    uint64_t kicks;            /* times the kick word was seen */
    uint64_t msr;
    uint64_t cpuid;
    uint64_t notify_eventfd;
    uint64_t notify_launcher;  /* lguest: NOTIFYs that no eventfd claimed */
    uint64_t hypercalls;       /* lguest: synchronous ones */
    uint64_t async_hypercalls; /* lguest: from the ring */
    uint64_t reflected;        /* lguest: traps handed to the Guest's kernel by the Host */
    uint64_t exclusive;        /* split locks and the like run with all others parked */
    uint64_t parked;           /* times this vCPU was parked for another's */
    uint64_t tb_translated;
    uint64_t tb_invalidated;   /* remote invalidations handled */
    uint64_t code_posts;       /* invalidations sent */
    uint64_t write_protects;   /* write-protect handshakes answered */
    uint64_t ring_overflows;
};

/* ---- the lguest machine's own structures (Linux 3.x: include/linux/lguest.h, drivers/lguest/lg.h) ---- */

/* At the end of a vCPU's registers page: the Switcher's text pops and pushes exactly this. */
struct lguest_regs {
    uint32_t eax, ebx, ecx, edx, esi, edi, ebp;
    uint32_t gs, fs, ds, es;
    uint32_t trapnum, errcode;
    uint32_t eip, cs, eflags, esp, ss;
};

/* A vCPU's state page: what the CPU reads while the Guest runs (SDM vol. 3, 2.4, 6.10, 7.2.1). */
struct lguest_ro_state {
    uint32_t tss[26];          /* link, esp0, ss0, esp1, ss1, ... io map base in the last half */
    uint32_t guest_idt[512];   /* 256 gates, low word first */
    uint32_t guest_gdt[64];    /* 32 descriptors */
};

/* What a vCPU of the Guest and the Host tell each other; in guest memory. */
struct lguest_data {
    uint32_t irq_enabled;
    uint32_t blocked_interrupts;
    uint32_t cr2;
    uint32_t time_sec, time_nsec;
    uint32_t irq_pending;
    uint8_t hcall_status[64];
    uint32_t hcalls[320];      /* 64 calls of 5 words */
    uint32_t reserve_mem;
    uint32_t tsc_khz;
    uint32_t noirq_start, noirq_end;
    uint32_t kernel_address;
    uint32_t syscall_vec;
};

#define LGUEST_TRAP_ENTRY 31
#define LGUEST_IRQS 32
#define LGUEST_PL 1
#define LGUEST_GDT_CS 10       /* the Switcher's own segments and task; the Guest's entries here are ignored */
#define LGUEST_GDT_DS 11
#define LGUEST_GDT_KERNEL_CS 12
#define LGUEST_GDT_KERNEL_DS 13
#define LGUEST_GDT_TSS 16
#define LGUEST_GDT_DOUBLEFAULT 31
#define LGUEST_GDT_TLS 6
#define LGUEST_SWITCHER_TRAP 256 /* trapnum while the Guest runs: a fault of the Switcher itself keeps it */
#define LGUEST_HOST_VECTOR 251 /* a kick is this host interrupt */

/* A copy of the architectural registers, decoded from the engine's CPU state. */
struct smp_regs {
    uint64_t gpr[16];          /* rax rcx rdx rbx rsp rbp rsi rdi r8..r15 */
    uint64_t rip;
    uint64_t rflags;
    uint64_t cr0;
    uint64_t cr2;
    uint64_t cr3;
    uint64_t cr4;
    uint64_t efer;
    uint64_t seg_base[6];      /* es cs ss ds fs gs */
    uint32_t seg_selector[6];
    uint64_t gdt_base;
    uint64_t idt_base;
    uint64_t tr_base;
    uint32_t gdt_limit;
    uint32_t idt_limit;
    uint32_t cpl;
    uint32_t halted;
};

/* The local APIC (SDM vol. 3, chapter 11).  irr and tmr are [atomic]: any
 * sender sets bits.  Everything else is written by the owning vCPU only
 * (senders read id, ldr, dfr, svr to match destinations). */
struct smp_lapic {
    uint32_t irr[8];
    uint32_t tmr[8];
    uint32_t isr[8];
    uint32_t id;               /* APIC ID in bits 24..31 */
    uint32_t tpr;
    uint32_t ldr;
    uint32_t dfr;
    uint32_t svr;
    uint32_t esr;              /* latched by a write, as the SDM says */
    uint32_t esr_pending;      /* [atomic] */
    uint32_t icr_low;
    uint32_t icr_high;
    uint32_t lvt[7];           /* timer, thermal, perf, lint0, lint1, error, cmci */
    uint32_t timer_initial;
    uint32_t timer_divide;
    uint64_t timer_start_ns;   /* when the current count began, guest clock in ns */
    uint64_t timer_deadline_ns;/* absolute host CLOCK_MONOTONIC ns of the next expiry, 0 = off */
    uint64_t tsc_deadline;     /* IA32_TSC_DEADLINE, 0 = disarmed */
    uint64_t apic_base;        /* IA32_APIC_BASE */
    uint32_t sipi_vector;      /* [atomic] of the SIPI that set SMP_EVENT_SIPI (by its sender) */
    uint32_t wait_sipi;        /* 1: INIT was taken, only SIPI matters */
};

/* One vCPU, in the spirit of struct lguest_pages; page aligned, smp_vcpu_stride apart. */
struct smp_vcpu {
    uint32_t state;            /* [atomic, futex] enum smp_state */
    uint32_t events;           /* [atomic] SMP_EVENT_* */
    uint32_t wake;             /* [atomic, futex] bumped by every kick; sleepers wait on it */
    uint32_t in_guest;         /* [atomic, futex] 1: may touch guest memory or translate now */
    uint32_t sleeping;         /* [atomic] 1: waits on `wake` */
    uint32_t pause;            /* [atomic, futex] 1: the Host wants it paused; 1 at birth */
    uint32_t index;
    uint32_t pid;              /* of the worker, 0 before it exists */
    uint32_t kick_offset;      /* of icount_decr.u16.high in the CPU state; 0 = no engine yet */
    uint32_t exit_reason;      /* last enum smp_exit */
    uint32_t halted;           /* HLT executed and not yet woken */
    uint32_t flush_all;        /* [atomic] code ring overflowed: forget every translation */
    uint32_t ring_tail;        /* [atomic] producers */
    uint32_t ring_head;        /* the owner */
    uint32_t masked;           /* owner: halted with IF clear, so fixed interrupts do not end smp_sleep() */
    uint32_t state_waiters;    /* [atomic] processes in smp_wait_state() */
    uint64_t ring[256];        /* [atomic] SMP_RING posts about code pages: see coherence.c */
    struct smp_request request;
    struct smp_lapic lapic;
    struct smp_counters counters;
    uint64_t start_eip;        /* BSP start state, set by the loader */
    uint64_t start_eax;
    uint64_t start_ebx;
    uint64_t start_esi;
    uint32_t start_mode;       /* 32: flat protected mode (multiboot), 64: long mode */
    uint32_t start_cr3;
    uint32_t irqs_pending;     /* [atomic] lguest: bit n = irq n */
    uint32_t up;               /* [atomic] lguest: 0 down, 1 about to be told where, 2 runs from start_eip */
    uint32_t linear;           /* owner: lguest: no page tables yet, virtual is physical */
    uint32_t pad;
    uint64_t clock_ns;         /* owner: lguest: CLOCK_MONOTONIC ns of the next irq 0, 0 = off */
    char last_error[240];      /* SMP_TEXT: the worker's last words */
};

struct smp_control {
    uint32_t magic;
    uint32_t abi;
    uint64_t size;             /* of the whole control block, bytes */
    uint64_t ram_size;         /* bytes of guest RAM, from guest-physical 0 */
    uint32_t vcpus;
    uint32_t host_pid;
    uint64_t vcpu_offset;      /* first struct smp_vcpu */
    uint64_t vcpu_stride;
    uint64_t cpu_offset;       /* engine CPU state of vCPU 0 */
    uint64_t cpu_stride;
    uint64_t page_offset;      /* uint64_t per guest page: who has code, who writes */
    uint64_t granule_offset;   /* uint64_t per guest page: 64-byte granules that hold code */
    uint64_t port_offset;      /* uint8_t[65536] SMP_PORT_* */
    uint64_t shadow_offset;    /* uint8_t[65536] */
    uint64_t posted_offset;    /* struct smp_posted[SMP_POSTED] */
    uint64_t switcher_offset;  /* the Switcher's pages: text, then per vCPU registers and state */
    uint64_t switcher_address; /* where they appear in every address space of the Guest, 0 = nowhere */
    uint64_t tsc_start;        /* host TSC that is the Guest's TSC 0 */
    uint64_t tsc_khz;
    int32_t host_fd;           /* eventfd: mailboxes and the posted ring */
    uint32_t spin_ns;          /* how long a halted vCPU spins before it sleeps */
    uint32_t dead;             /* [atomic] enum smp_dead */
    uint32_t dead_vcpu;        /* SMP_MAX_VCPUS: nobody's */
    uint64_t dead_code;
    uint32_t dead_ready;       /* [atomic] the fields of dead are complete */
    uint32_t exclusive;        /* [atomic, futex] vCPU index + 1 that stopped the world, 0 = none */
    uint32_t posted_tail;      /* [atomic] producers */
    uint32_t posted_head;      /* [atomic, futex] the Host */
    uint32_t posted_signalled; /* [atomic] the Host has been told since it last drained */
    uint32_t bindings_used;
    uint32_t mmio_ranges;
    uint32_t lowest_next;      /* round robin of lowest-priority delivery */
    uint32_t taker_wanted;     /* [atomic] a level interrupt waits in the IOAPIC: nobody took it */
    uint32_t machine;          /* enum smp_machine */
    uint32_t pfn_limit;        /* lguest: pages at and above this one are nothing */
    uint32_t smp_wanted;       /* [atomic] lguest: SMP_INIT was called */
    uint32_t irq_vcpu[32];     /* [atomic] lguest: where each device's interrupt goes */
    struct smp_mmio_range mmio[16];
    struct smp_binding bindings[64];
    uint64_t mutex[8];         /* the Big Lock: a robust process-shared pthread mutex */
    uint32_t mutex_site;       /* the holder's call site */
    uint32_t mutex_owner;      /* its pid, for reports */
    uint64_t mutex_since;      /* CLOCK_MONOTONIC ns */
    struct smp_lock_stats locks[5];
    char dead_text[240];
};

/* Which text of this file the library was built from (generated by both builds: declared.py). */
uint32_t smp_header_id(void);

/* ---- control.c: layout, life and death, kicks and sleep ------------------- */
uint64_t smp_control_size(uint32_t vcpus, uint64_t ram_size, uint64_t cpu_state_size);
int smp_control_init(struct smp_control *c, uint64_t size, uint32_t vcpus, uint64_t ram_size,
                     uint64_t cpu_state_size, uint64_t tsc_khz);
struct smp_vcpu *smp_vcpu(struct smp_control *c, uint32_t index);
uint64_t smp_now_ns(void);
uint64_t smp_host_tsc(void);
uint64_t smp_guest_tsc(struct smp_control *c);
/* Are we a guest of ours?  1: CPUID leaf 0x40000000 says "smpguestsmpg". */
uint32_t smp_inside_guest(void);

/* First writer wins; returns 1 if this call decided.  Kicks and wakes everybody. */
int smp_kill_guest(struct smp_control *c, uint32_t reason, uint32_t vcpu, uint64_t code, const char *text);
/* Store into the target's kick word, and wake it if it sleeps. */
void smp_kick(struct smp_control *c, uint32_t vcpu);
void smp_event(struct smp_control *c, uint32_t vcpu, uint32_t event);   /* atomic OR, then kick */
/* Sleep until something is pending for this vCPU, `timeout_ns` passes (negative: for ever), or dead.
 * Returns 1 if there is something to look at (a signal counts: its handler may want the loop), 0 on
 * time-out.  Pending: dead, pause, events (no NMI while wait_sipi), or a deliverable interrupt unless
 * `masked` or wait_sipi.  The caller consumes events; one that it leaves set makes this return at once. */
int smp_sleep(struct smp_control *c, uint32_t vcpu, int64_t timeout_ns);
/* Host: ask for pause or resume; worker: wait in it.  smp_pause_wait sets PAUSED, returns when resumed
 * (state RUNNING again) or dead.  A vCPU is born with pause = 1: resume is what starts it. */
void smp_pause(struct smp_control *c, uint32_t vcpu, uint32_t on);
void smp_pause_wait(struct smp_control *c, uint32_t vcpu);
void smp_set_state(struct smp_control *c, uint32_t vcpu, uint32_t state);
/* Wait until the vCPU's state differs from `state`; 1 if it does, 0 on time-out.  Works on a dead Guest
 * too (to collect acknowledgements), but then a negative time-out (for ever) returns at once. */
int smp_wait_state(struct smp_control *c, uint32_t vcpu, uint32_t state, int64_t timeout_ns);

/* in_guest and exclusive.  enter: 0, waiting first while another vCPU has stopped the world; -1 when the
 * Guest is dead (not entered).  leave: before every wait, so that a stopper need not wait for us.
 * smp_exclusive_begin: returns 0 when every other vCPU is out of the Guest, -1 when the Guest is dead
 * (then there is nothing to end, and the caller is outside); the caller is in the Guest before and after,
 * outside while it waits, so it serves its posts before it goes on. */
int smp_enter_guest(struct smp_control *c, uint32_t vcpu);
void smp_leave_guest(struct smp_control *c, uint32_t vcpu);
int smp_exclusive_begin(struct smp_control *c, uint32_t vcpu);
void smp_exclusive_end(struct smp_control *c, uint32_t vcpu);

/* ---- biglock.c ------------------------------------------------------------ */
/* The Big Lock: 0 taken, 1 taken over from a dead holder, negative errno. */
int smp_lock(struct smp_control *c, uint32_t site);
int smp_unlock(struct smp_control *c);

/* ---- mailbox.c: worker to Host; bus.c: ports, devices, bindings ----------- */
/* Worker: ask the Host and wait; returns 0, or -1 when the Guest died meanwhile (data: all ones). */
int smp_ask_host(struct smp_control *c, uint32_t vcpu, uint32_t kind, uint64_t address, uint32_t size,
                 uint64_t *data);
/* Worker: post a write that needs no answer; waits for room unless the Guest is dead. */
void smp_post(struct smp_control *c, uint32_t vcpu, uint32_t kind, uint64_t address, uint32_t size, uint64_t data);
/* Host: call after reading host_fd and before looking at the mailboxes and the ring. */
void smp_host_woken(struct smp_control *c);
/* Host: take one posted entry, 1 if there was one.  Drain the ring before answering a mailbox: what a
 * vCPU posted before it asked comes first. */
int smp_post_take(struct smp_control *c, struct smp_posted *out);
/* Host: has this vCPU asked?  Then answer. */
int smp_asked(struct smp_control *c, uint32_t vcpu);
void smp_answer(struct smp_control *c, uint32_t vcpu, uint64_t data);
/* Port I/O and foreign MMIO as the Guest does them: native, shadowed, posted, or asked. */
uint64_t smp_pio_read(struct smp_control *c, uint32_t vcpu, uint32_t port, uint32_t size);
void smp_pio_write(struct smp_control *c, uint32_t vcpu, uint32_t port, uint32_t size, uint64_t data);
uint64_t smp_mmio_read(struct smp_control *c, uint32_t vcpu, uint64_t address, uint32_t size);
void smp_mmio_write(struct smp_control *c, uint32_t vcpu, uint64_t address, uint32_t size, uint64_t data);
void smp_set_port(struct smp_control *c, uint32_t port, uint32_t attributes, uint32_t shadow);
/* Bound address -> its eventfd (1), nobody -> 0.  kind 0 is a NOTIFY.  The Big Lock is taken inside, only
 * when a binding matches: do not hold it.  smp_bind: 0, or -EEXIST, -ENOSPC, -EBADF. */
int smp_notify(struct smp_control *c, uint32_t kind, uint64_t address);
int smp_bind(struct smp_control *c, uint32_t kind, uint64_t address, int fd);
void smp_unbind(struct smp_control *c, uint32_t kind, uint64_t address);

/* ---- coherence.c: code pages shared by several engines ------------------ */
/* Host: write guest RAM so that no engine keeps a stale translation; 0, or -1 out of range. */
int smp_dma_write(struct smp_control *c, void *ram, uint64_t address, const void *data, uint64_t len);

/* ---- lapic.c, ipi.c, lapic_timer.c ------------------------------------------------------------- */
void smp_lapic_reset(struct smp_control *c, uint32_t vcpu, uint32_t power_on);
uint32_t smp_lapic_read(struct smp_control *c, uint32_t vcpu, uint32_t offset);
void smp_lapic_write(struct smp_control *c, uint32_t vcpu, uint32_t offset, uint32_t value);
int smp_lapic_pending(struct smp_control *c, uint32_t vcpu);    /* vector deliverable now, or -1 */
int smp_lapic_ack(struct smp_control *c, uint32_t vcpu);        /* IRR -> ISR; vector (spurious if none); counts it */
/* The whole 8-bit TPR; CR8 is its bits 4..7. */
uint32_t smp_lapic_tpr(struct smp_control *c, uint32_t vcpu);
void smp_lapic_set_tpr(struct smp_control *c, uint32_t vcpu, uint32_t tpr);
void smp_lapic_timer_event(struct smp_control *c, uint32_t vcpu);  /* owner, on SMP_EVENT_TIMER */
uint64_t smp_lapic_msr_read(struct smp_control *c, uint32_t vcpu, uint32_t msr, int *fault);
void smp_lapic_msr_write(struct smp_control *c, uint32_t vcpu, uint32_t msr, uint64_t value, int *fault);
/* An interrupt message from a device (IOAPIC, MSI) or an IPI without shorthand; how many vCPUs took it. */
int smp_deliver(struct smp_control *c, uint32_t destination, uint32_t logical, uint32_t delivery,
                uint32_t vector, uint32_t level);
/* Host: does a level interrupt wait for somebody to take it?  After 1 try again: a local APIC that changes
 * from then on posts SMP_POST_TAKER, one that changed before did not know. */
void smp_want_taker(struct smp_control *c, uint32_t wanted);
/* Worker start-up: this thread's host timer for the local APIC timer; 0 or negative errno. */
int smp_timer_start(struct smp_control *c, uint32_t vcpu);
void smp_timer_stop(void);
void smp_timer_arm(uint64_t deadline_ns);                       /* absolute CLOCK_MONOTONIC, 0 = off */

/* Store one word of guest memory so that all engines notice (see smp_dma_write); the caller has checked. */
void smp_lguest_store(struct smp_control *c, void *ram, uint64_t address, uint32_t value);
/* Set bits of a page-table entry; the caller has checked. */
void smp_lguest_or(void *ram, uint64_t address, uint32_t bits);

/* ---- irq.c: interrupts of the lguest machine -------------------------------------------------- */
/* Anybody: make `irq` (0 to 31) pending for `vcpu`, and kick it. */
void smp_set_interrupt(struct smp_control *c, uint32_t vcpu, uint32_t irq);
/* A device's interrupt, to the vCPU that it was routed to. */
void smp_device_interrupt(struct smp_control *c, uint32_t irq);
/* Owner: take its events; an expired clock becomes irq 0.  Returns the pending irqs. */
uint32_t smp_take_irqs(struct smp_control *c, uint32_t vcpu);
void smp_clear_irq(struct smp_control *c, uint32_t vcpu, uint32_t irq);
/* Owner: one-shot clock, ns from now; 0 = off. */
void smp_set_clock(struct smp_control *c, uint32_t vcpu, uint64_t delta_ns);
/* Owner: be kicked at this time at the latest (0: only for the clock), to look at its interrupts again. */
void smp_look_again(struct smp_control *c, uint32_t vcpu, uint64_t delta_ns);
/* Start a vCPU of the lguest machine: 1, or 0 if it runs already. */
int smp_vcpu_up(struct smp_control *c, uint32_t vcpu, uint32_t eip, uint32_t argument);

/* ---- engine.c: only in the patched engine -------------------------------- */
uint64_t smp_cpu_state_size(void);
/* Before the engine is opened: where its CPU state shall live. */
void smp_engine_prepare(struct smp_control *c, void *ram, uint32_t vcpu);
int smp_engine_attach(void *uc);                                /* after uc_mem_map_ptr; 0 or negative */
int smp_run(void *uc);                                          /* enter the Guest; enum smp_exit */
int smp_read_regs(struct smp_control *c, uint32_t vcpu, struct smp_regs *out);
/* Prove the loaded engine with two vCPUs (milliseconds): NULL, or why it may not run two in parallel.
 * Starts two threads and joins them, if kicks stop them; not at the same time as anything else here. */
const char *smp_selftest(void);

/* ---- lguest.c: only in the patched engine; called by the vCPU's worker between runs ------------ */
const void *smp_switcher_text(uint32_t *size);
/* Offsets in the text: where the Guest is entered, and the entry of each of 256 traps. */
uint32_t smp_switcher_entry(uint32_t trap);
uint32_t smp_switcher_enter(void);
void smp_lguest_reset(void *uc);                                /* as after power-on: linear, TS clear */
void smp_lguest_new_pgdir(void *uc, uint32_t pgdir);
void smp_lguest_flush(void *uc);
void smp_lguest_flush_page(void *uc, uint32_t address);
void smp_lguest_set_ts(void *uc, uint32_t on);
uint32_t smp_lguest_cr2(void *uc);
#endif
