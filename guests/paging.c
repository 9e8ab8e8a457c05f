/* paging: accessed and dirty bits, TLB shootdown, and faults of every kind with the right error code, CR2 and registers.
   Options: only=faults|frames|bits|tlb|race|shoot, rounds=N (of the races between CPUs). */
#include "guest.h"

const char guest_name[] = "paging";

#ifdef __x86_64__
#define R "r"
#define LEVELS 4
#define INDEX_BITS 9
#else
#define R "e"
#define LEVELS 2
#define INDEX_BITS 10
#endif
#define LARGE (1ul << (12 + INDEX_BITS))                /* 4 MB or 2 MB */
#define CODE_CANARY 0x909080CDu                         /* int $0x80; nop; nop: data that may be run */

enum { ERR_P = 1, ERR_W = 2, ERR_U = 4, ERR_RSVD = 8, ERR_I = 16 };
enum { VECTOR_PF = 14 };

/* Each CPU has 4 MB of addresses of its own, and with them its own page directory entry. */
static reg_t region(void) { return FREE_VA + 0x2000000 + cpu_index() * 0x400000ul; }
static reg_t large_frame;                               /* a large page of RAM that nobody else uses */

static volatile reg_t *entry_of(reg_t va, int level)    /* level 0: page table */
{
    if (level == 0)
        pte_of(va, true);                               /* makes the page table if there is none */
    reg_t *table = page_root;
    for (int l = LEVELS - 1; l > level; l--)
        table = (reg_t *)(table[va >> (12 + INDEX_BITS * l) & ((1u << INDEX_BITS) - 1)] & ~(reg_t)0xFFF & ~PTE_NX);
    return &table[va >> (12 + INDEX_BITS * level) & ((1u << INDEX_BITS) - 1)];
}

static void set(volatile reg_t *entry, reg_t v, reg_t va)
{
    *entry = v;
    invlpg((void *)va);
}

/* ---- single accesses, in either ring ---- */

/* di: address, ax: data. On the way out int $0x80. */
extern const uint8_t snippets[], s_read[], s_write[], s_rmw[], s_exec[], s_read2[], s_write2[], s_read8[], s_write8[], s_xchg[],
    s_cmpxchg8b[], s_push[], s_call[], s_ret[], s_pop[], s_pop_memory[], s_push_memory[], s_iret[], s_movs[], s_stos[], s_lods[],
    s_cmps[], s_scas[], s_leave[], snippets_end[];
#define SNIPPET(name, code) #name ": " code "; int $0x80\n"
asm(".pushsection .text\n"
    "snippets:\n"
    SNIPPET(s_read, "mov (%" R "di), %eax")
    SNIPPET(s_write, "mov %eax, (%" R "di)")
    SNIPPET(s_rmw, "lock addl %eax, (%" R "di)")
    SNIPPET(s_exec, "jmp *%" R "di")
    SNIPPET(s_read2, "mov (%" R "di), %ax")
    SNIPPET(s_write2, "mov %ax, (%" R "di)")
    SNIPPET(s_read8, "fildll (%" R "di); fstp %st(0)")
    SNIPPET(s_write8, "fistpll (%" R "di); fldpi")        /* st0 is pi: writes 3 */
    SNIPPET(s_xchg, "xchg %eax, (%" R "di)")
    SNIPPET(s_cmpxchg8b, "lock cmpxchg8b (%" R "di)")
    SNIPPET(s_push, "push %" R "ax")
    SNIPPET(s_call, "call 1f; 1:")
    SNIPPET(s_ret, "ret")
    SNIPPET(s_pop, "pop %" R "ax")
    SNIPPET(s_pop_memory, "pop (%" R "di)")
    SNIPPET(s_push_memory, "push (%" R "di)")
#ifdef __x86_64__
    SNIPPET(s_iret, "iretq")
#else
    SNIPPET(s_iret, "iret")
#endif
    SNIPPET(s_movs, "rep movsb")
    SNIPPET(s_stos, "rep stosl")
    SNIPPET(s_lods, "rep lodsb")
    SNIPPET(s_cmps, "repe cmpsb")
    SNIPPET(s_scas, "repne scasb")
    SNIPPET(s_leave, "leave")
    "snippets_end: .popsection");

static uint8_t *user_code, *user_stack[MAX_CPUS];

static struct run prepare(const uint8_t *code, uint32_t ring, reg_t di, reg_t ax)
{
    struct run r = { .t = { .di = di, .ax = ax, .flags = 2 | FLAG_IF } };
    if (ring) {
        r.t.cs = (sizeof(reg_t) == 8 ? SEL_UCODE64 : SEL_UCODE32) | 3;
        r.t.ss = r.t.ds = r.t.es = SEL_UDATA | 3;
        r.t.sp = (reg_t)user_stack[cpu_index()] + 2048;
        r.t.ip = (reg_t)user_code + (reg_t)(code - snippets);
    } else {
        r.t.cs = SEL_KCODE;
        r.t.ip = (reg_t)code;
    }
    return r;
}

static uint32_t faults_seen;                            /* for the report only */

/* Runs it; the fault must have this error code and CR2, and point to the first instruction or, if that jumps, to `ip`. */
static void must_fault(struct run *r, const char *what, reg_t error, reg_t cr2, reg_t ip)
{
    reg_t sp = r->t.sp;
    ip = ip ? ip : r->t.ip;
    run_code(r);
    check(r->t.vector == VECTOR_PF, "%s: vector %lu at ip %lx instead of a page fault at %lx", what, r->t.vector, r->t.ip, cr2);
    check(r->t.error == error && r->cr2 == cr2, "%s: error code %lx, CR2 %lx instead of %lx, %lx", what, r->t.error, r->cr2, error, cr2);
    check(r->t.ip == ip, "%s: the fault points to %lx, the instruction is at %lx", what, r->t.ip, ip);
    check(!(r->t.cs & 3) || r->t.sp == sp, "%s: the faulting instruction changed the stack pointer from %lx to %lx", what, sp, r->t.sp);
    __atomic_add_fetch(&faults_seen, 1, __ATOMIC_RELAXED);
}

static void must_end(struct run *r, const char *what)
{
    run_code(r);
    check(r->t.vector == END, "%s: vector %lu, error %lx, CR2 %lx instead of success", what, r->t.vector, r->t.error, r->cr2);
}

enum access { READ, WRITE, RMW, EXEC, ACCESSES };
static const char *const access_names[] = { "read", "write", "locked add", "fetch" };
static reg_t reserved_p = ERR_P;                        /* see probe_reserved() */
static bool nx_on[MAX_CPUS];                            /* EFER.NXE as the test has set it */

/* The one rule, from SDM vol. 3, 4.6 and 4.7. upper and leaf: page directory entry and the entry that maps the page. */
static int expected(reg_t upper, reg_t leaf, uint32_t ring, enum access a, bool wp)
{
    int error = (a == WRITE || a == RMW ? ERR_W : 0) | (ring ? ERR_U : 0) | (a == EXEC && nx_on[cpu_index()] ? ERR_I : 0);
    reg_t both = upper & leaf, any = upper | leaf;
    int reserved_error = error | ERR_RSVD | (int)reserved_p;
    bool reserved = !nx_on[cpu_index()] && any & PTE_NX;             /* without NXE the bit is reserved */
    if (!(both & PTE_P) && !(reserved && upper & PTE_P && upper & PTE_NX))
        return error;
    if (reserved)
        return reserved_error;
    if ((ring && !(both & PTE_U)) || (error & ERR_W && !(both & PTE_W) && (ring || wp)) || (a == EXEC && any & PTE_NX))
        return error | ERR_P;
    return -1;
}

/* One page, one way to map it, every access. `home` is where ring 0 always sees the frame. */
static void try_accesses(reg_t va, volatile uint32_t *home, reg_t upper, reg_t leaf, volatile reg_t *leaf_entry, bool wp)
{
    static const uint8_t *const code[] = { s_read, s_write, s_rmw, s_exec };
    for (uint32_t ring = 0; ring <= 3; ring += 3)
        for (enum access a = READ; a < ACCESSES; a++) {
            char what[120];
            snprintf(what, sizeof what, "CPU %u: ring %u %s, directory flags %lx, page flags %lx, WP %u, NXE %u", cpu_index(), ring,
                     access_names[a], upper & (PTE_NX | 7), leaf & (PTE_NX | 0x87), wp, nx_on[cpu_index()]);
            *home = CODE_CANARY;
            struct run r = prepare(code[a], ring, va, a == WRITE ? 0x12345678 : a == RMW ? 1 : 0xABCD);
            int error = expected(upper, leaf, ring, a, wp);
            if (error < 0) {
                must_end(&r, what);
                check(r.t.ax == (a == READ ? CODE_CANARY : a == WRITE ? 0x12345678 : a == RMW ? 1 : 0xABCD), "%s: eax is %lx", what, r.t.ax);
                check(*home == (a == WRITE ? 0x12345678 : CODE_CANARY + (a == RMW)), "%s: memory is %x", what, *home);
                check(a != EXEC || r.t.ip == va + 2, "%s: ended at %lx", what, r.t.ip);
                check(*leaf_entry & PTE_A, "%s: A is not set", what);
                check(*leaf_entry & PTE_D || (a != WRITE && a != RMW), "%s: D is not set", what);
                set(leaf_entry, leaf, va);
            } else {
                /* Whether a read-modify-write that may not even read reports a read or a write is not written anywhere. */
                if (a == RMW && (!(error & ERR_P) || error & ERR_RSVD || (ring && !(upper & leaf & PTE_U)))) {
                    struct run again = r;
                    run_code(&again);
                    error = (error & ~ERR_W) | (int)(again.t.error & ERR_W);
                }
                must_fault(&r, what, (reg_t)error, va, a == EXEC ? va : 0);
                check(r.t.ax == (a == WRITE ? 0x12345678 : a == RMW ? 1 : 0xABCD), "%s: the faulting instruction changed eax", what);
                check(*home == CODE_CANARY, "%s: the faulting instruction wrote %x", what, *home);
                check(!(*leaf_entry & PTE_D), "%s: the faulting instruction set D", what);
                set(leaf_entry, leaf, va);
            }
        }
}

#ifdef __x86_64__
static uint32_t address_width(void)                     /* address bits from here to 51 are reserved in an entry */
{
    return cpuid(0x80000000u, 0).eax >= 0x80000008u ? cpuid(0x80000008u, 0).eax & 0xFF : 36;
}

/* SDM vol. 3, 4.7: "bit 3 of the error code can be set only if bit 0 is also set". Some emulators forget bit 0. */
static void probe_reserved(void)
{
    reg_t va = region() + 0x5000;
    if (address_width() > 51)
        return;
    set(entry_of(va, 0), PTE_P | 1ul << 51, va);
    struct run r = prepare(s_read, 0, va, 0);
    run_code(&r);
    if (r.t.vector == VECTOR_PF && r.t.error == ERR_RSVD) {
        printf("paging: a reserved bit gives error code 8 instead of 9: its bit 0 is not checked on this machine\n");
        reserved_p = 0;
    }
    set(entry_of(va, 0), 0, va);
}
#else
static void probe_reserved(void) { }
#endif

static void every_fault(void *unused)
{
    (void)unused;
    reg_t va = region(), frame = (reg_t)alloc_page(), large = large_frame + 64 * cpu_index();
    volatile reg_t *directory = entry_of(va, 1), *page = entry_of(va + 0x5000, 0);
    reg_t table = *directory & ~(reg_t)0xFFF, cr0 = read_cr0();
    bool can_nx = has_nx, *on = &nx_on[cpu_index()];

    for (uint32_t nx = 0; nx <= can_nx; nx++) {
        uint64_t efer = can_nx ? rdmsr(0xC0000080) : 0;
        if (can_nx) {
            wrmsr(0xC0000080, nx ? efer | 0x800 : efer & ~0x800ull);
            *on = nx;
        }
        for (uint32_t bits = 0; bits < (has_nx ? 512 : 128); bits++) {
            reg_t upper = (bits & 7) | (bits & 128 ? PTE_NX : 0), leaf = (bits >> 3 & 7) | (bits & 256 ? PTE_NX : 0);
            if (!*on && has_nx && !((upper | leaf) & PTE_NX))
                continue;                               /* has been tried with NXE on, or will be */
            bool wp = bits & 64;
            write_cr0(wp ? cr0 : cr0 & ~0x10000ul);
            *directory = table | upper;
            set(page, frame | leaf, va + 0x5000);
            try_accesses(va + 0x5000, (uint32_t *)frame, upper, frame | leaf, page, wp);
        }
        *directory = table | PTE_P | PTE_W | PTE_U;
        for (uint32_t bits = 0; bits < (has_nx ? 32 : 16); bits++) {
            reg_t leaf = large_frame | PTE_LARGE | (bits & 7) | (bits & 16 ? PTE_NX : 0), at = va + 64 * cpu_index();
            bool wp = bits & 8;
            if (*on != has_nx && !(leaf & PTE_NX))
                continue;
            write_cr0(wp ? cr0 : cr0 & ~0x10000ul);
            set(directory, leaf, va);
            try_accesses(at, (uint32_t *)large, PTE_P | PTE_W | PTE_U, leaf, directory, wp);
        }
        write_cr0(cr0);
        set(directory, table | PTE_P | PTE_W | PTE_U, va);
        if (can_nx)
            wrmsr(0xC0000080, efer);
        *on = has_nx;
    }

#ifdef __x86_64__
    for (uint32_t bit = address_width(); bit < 52; bit++)
        for (uint32_t ring = 0; ring <= 3; ring += 3) {
            set(page, frame | PTE_P | PTE_W | PTE_U | 1ul << bit, va + 0x5000);
            struct run r = prepare(s_write, ring, va + 0x5000, 0);
            must_fault(&r, "write through an entry with a reserved address bit", reserved_p | ERR_RSVD | ERR_W | (ring ? ERR_U : 0), va + 0x5000, 0);
            r = prepare(s_read, ring, va + 0x5000, 0);
            must_fault(&r, "read through an entry with a reserved address bit", reserved_p | ERR_RSVD | (ring ? ERR_U : 0), va + 0x5000, 0);
            set(page, *page & ~(reg_t)PTE_P, va + 0x5000);
            r = prepare(s_read, ring, va + 0x5000, 0);
            must_fault(&r, "read through an entry that is not present (other bits do not matter)", ring ? ERR_U : 0, va + 0x5000, 0);
        }
#endif
    set(page, 0, va + 0x5000);
}

/* ---- accesses over two pages: the right CR2, and nothing of the store to be seen when one page refuses ---- */

static void over_two_pages(void *unused)
{
    (void)unused;
    asm volatile("fninit; fldpi");
    static const struct { const uint8_t *code; const char *name; uint32_t width; bool write, rmw; } accesses[] = {
        { s_read2, "2-byte read", 2, false, false }, { s_read, "4-byte read", 4, false, false }, { s_read8, "8-byte read", 8, false, false },
        { s_write2, "2-byte write", 2, true, false }, { s_write, "4-byte write", 4, true, false }, { s_write8, "8-byte write", 8, true, false },
        { s_rmw, "lock add", 4, true, true }, { s_xchg, "xchg", 4, true, true }, { s_cmpxchg8b, "lock cmpxchg8b", 8, true, true },
    };
    enum { ABSENT, READ_ONLY, SUPERVISOR };
    reg_t first = region() + 0x8000, second = first + PAGE_SIZE;
    uint8_t *frames[2] = { alloc_page(), alloc_page() }, *tail = frames[0] + PAGE_SIZE - 8;
    volatile reg_t *entry[2] = { entry_of(first, 0), entry_of(second, 0) };

    for (uint32_t i = 0; i < array_size(accesses); i++)
        for (uint32_t n = 0; n < 3 * 2 * 2; n++)
            for (uint32_t before = 1; before < accesses[i].width; before++) {
                uint32_t how = n % 3, bad = n / 3 % 2, ring = n / 6 * 3, guard[4];
                if ((how == READ_ONLY && !accesses[i].write) || (how == SUPERVISOR && !ring))
                    continue;
                reg_t at = second - before, good = PTE_P | PTE_W | PTE_U;
                set(entry[!bad], (reg_t)frames[!bad] | good, bad ? first : second);
                set(entry[bad], (reg_t)frames[bad] | (how == ABSENT ? 0 : how == READ_ONLY ? PTE_P | PTE_U : PTE_P | PTE_W),
                    bad ? second : first);
                memset(tail, 0x5A, 8);
                memset(frames[1], 0x5A, 8);
                struct run r = prepare(accesses[i].code, ring, at, 0x11223344);
                char what[100];
                snprintf(what, sizeof what, "CPU %u: ring %u %s, %u bytes before a border, %s page %s", cpu_index(), ring, accesses[i].name,
                         before, bad ? "second" : "first", how == ABSENT ? "absent" : how == READ_ONLY ? "read-only" : "of the supervisor");
                reg_t error = (accesses[i].write ? ERR_W : 0) | (ring ? ERR_U : 0) | (how == ABSENT ? 0 : ERR_P);
                if (accesses[i].rmw && how != READ_ONLY) {      /* see try_accesses() */
                    struct run again = r;
                    run_code(&again);
                    error = (error & ~(reg_t)ERR_W) | (again.t.error & ERR_W);
                }
                must_fault(&r, what, error, bad ? second : at, 0);
                memcpy(guard, tail, 8);
                memcpy(guard + 2, frames[1], 8);
                for (uint32_t g = 0; g < 4; g++)
                    check(guard[g] == 0x5A5A5A5A, "%s: a part was written: %x %x | %x %x", what, guard[0], guard[1], guard[2], guard[3]);
                check(r.t.ax == 0x11223344, "%s: eax became %lx", what, r.t.ax);

                set(entry[bad], (reg_t)frames[bad] | good, bad ? second : first);
                must_end(&r, what);                     /* restarts from the registers of the fault */
                memcpy(guard, tail + 8 - before, before);
                memcpy((uint8_t *)guard + before, frames[1], accesses[i].width - before);
                uint32_t want = accesses[i].rmw ? (accesses[i].code == s_rmw ? 0x5A5A5A5A + 0x11223344 : accesses[i].code == s_xchg ? 0x11223344 : 0x5A5A5A5A)
                              : accesses[i].code == s_write8 ? 3 : accesses[i].write ? 0x11223344 : 0x5A5A5A5A;
                uint32_t mask = accesses[i].width == 2 ? 0xFFFF : ~0u;
                check((guard[0] & mask) == (want & mask), "%s: after the restart memory is %x instead of %x", what, guard[0], want);
            }
    set(entry[0], 0, first);
    set(entry[1], 0, second);
}

/* ---- string instructions: a fault in the middle leaves exact registers, the restart finishes the work ---- */

static void strings(void *unused)
{
    (void)unused;
    reg_t base = region() + 0x10000, half = base + 2 * PAGE_SIZE;       /* source: two pages, destination: two pages */
    uint8_t *frame[4];
    volatile reg_t *entry[4];
    for (uint32_t i = 0; i < 4; i++) {
        frame[i] = alloc_page();
        entry[i] = entry_of(base + i * PAGE_SIZE, 0);
    }
    reg_t source2 = base + PAGE_SIZE, target2 = half + PAGE_SIZE;
    struct { const char *name; const uint8_t *code; uint32_t missing, element, count; int32_t si, di; bool back; reg_t cr2; bool write; } tests[] = {
        { "rep movsb, target page absent", s_movs, 3, 1, 100, -200, -40, false, target2, true },
        { "rep movsb, source page absent", s_movs, 1, 1, 100, -33, -60, false, source2, false },
        { "rep movsb, both absent at once", s_movs, 5, 1, 100, -33, -33, false, source2, false },
        { "rep movsb, target first", s_movs, 5, 1, 100, -33, -32, false, target2, true },
        { "rep movsb backwards, target page absent", s_movs, 2, 1, 100, 300, 20, true, target2 - 1, true },
        { "rep movsb backwards, source page absent", s_movs, 0, 1, 100, 17, 60, true, source2 - 1, false },
        { "rep movsb, a whole page first", s_movs, 3, 1, PAGE_SIZE + 100, -(int32_t)PAGE_SIZE, -(int32_t)PAGE_SIZE, false, target2, true },
        { "rep stosl, element over the border", s_stos, 3, 4, 5, 0, -6, false, target2, true },
        { "rep stosl", s_stos, 3, 4, 600, 0, -1200, false, target2, true },
        { "rep stosl backwards", s_stos, 2, 4, 20, 0, 16, true, target2 - 4, true },
        { "rep lodsb", s_lods, 1, 1, 50, -10, 0, false, source2, false },
        { "repe cmpsb, first operand", s_cmps, 1, 1, 50, -10, -30, false, source2, false },
        { "repe cmpsb, second operand", s_cmps, 3, 1, 50, -30, -10, false, target2, false },
        { "repne scasb", s_scas, 3, 1, 50, 0, -7, false, target2, false },
    };
    for (uint32_t n = 0; n < 2 * array_size(tests); n++) {
        uint32_t ring = n & 1 ? 3 : 0, i = n / 2, elements = 0;
        uint32_t missing = tests[i].missing == 5 ? 3 : tests[i].missing, also = tests[i].missing == 5 ? 1 : missing;
        bool uses_si = tests[i].code == s_movs || tests[i].code == s_lods || tests[i].code == s_cmps, uses_di = tests[i].code != s_lods;
        char what[100];
        snprintf(what, sizeof what, "CPU %u: ring %u %s", cpu_index(), ring, tests[i].name);
        for (uint32_t p = 0; p < 4; p++) {
            for (uint32_t k = 0; k < PAGE_SIZE; k++)
                frame[p][k] = tests[i].code == s_cmps ? 7 : p < 2 ? (k * 7 + p + 1) & 0x7F : 0xEE;
            set(entry[p], (reg_t)frame[p] | PTE_W | PTE_U | (p == missing || p == also ? 0 : PTE_P), base + p * PAGE_SIZE);
        }
        struct run r = prepare(tests[i].code, ring, target2 + (reg_t)tests[i].di, 0xA1B2C3D4);
        r.t.si = source2 + (reg_t)tests[i].si;
        r.t.cx = tests[i].count;
        r.t.flags |= tests[i].back ? 0x400 : 0;
        reg_t si = r.t.si, di = r.t.di, step = tests[i].back ? -(reg_t)tests[i].element : tests[i].element;
        reg_t error = (tests[i].write ? ERR_W : 0) | (ring ? ERR_U : 0);

        for (reg_t s = si, d = di;; s += step, d += step, elements++) {      /* how many elements touch present pages only */
            bool bad = false;
            for (uint32_t b = 0; b < tests[i].element; b++)
                for (uint32_t side = 0; side < 2; side++) {
                    uint32_t p = (uint32_t)(((side ? d : s) + b - base) / PAGE_SIZE);
                    bad |= (side ? uses_di : uses_si) && (p == missing || p == also);
                }
            if (bad)
                break;
        }
        must_fault(&r, what, error, tests[i].cr2, 0);
        check(r.t.cx == tests[i].count - elements && (!uses_si || r.t.si == si + elements * step) && (!uses_di || r.t.di == di + elements * step),
              "%s: count %lu, si %lx, di %lx; %u elements were possible from si %lx, di %lx", what, r.t.cx, r.t.si, r.t.di, elements, si, di);
        if (tests[i].write)
            for (uint32_t p = 2; p < 4; p++)
                for (uint32_t k = 0; k < PAGE_SIZE; k++) {      /* exactly the finished elements are in memory */
                    reg_t at = base + p * PAGE_SIZE + k, from = tests[i].back ? di - (elements - 1) * tests[i].element : di;
                    bool written = at - from < elements * tests[i].element;
                    check(written == (frame[p][k] != 0xEE), "%s: byte %lx is %x after %u elements from %lx", what, at, frame[p][k], elements, from);
                }

        for (uint32_t p = 0; p < 4; p++)
            set(entry[p], (reg_t)frame[p] | PTE_P | PTE_W | PTE_U, base + p * PAGE_SIZE);
        must_end(&r, what);
        check(!r.t.cx && (!uses_si || r.t.si == si + tests[i].count * step) && (!uses_di || r.t.di == di + tests[i].count * step),
              "%s: ended with count %lu, si %lx, di %lx", what, r.t.cx, r.t.si, r.t.di);
        if (tests[i].code == s_movs)
            for (uint32_t k = 0; k < tests[i].count; k++)
                check(((uint8_t *)(di + k * step))[0] == ((uint8_t *)(si + k * step))[0], "%s: byte %u was not copied", what, k);
    }

    /* Nothing at all happens with a count of 0; and a copy onto itself one byte further repeats the first byte. */
    struct run r = prepare(s_movs, 3, 0x1000, 0);
    r.t.si = 0x2000;
    must_end(&r, "rep movsb with count 0 and bad addresses");
    set(entry[3], (reg_t)frame[3] | PTE_W | PTE_U, target2);
    r = prepare(s_movs, 3, target2 - 9, 0);
    r.t.si = target2 - 10;
    r.t.cx = 30;
    frame[2][PAGE_SIZE - 10] = 0x77;
    must_fault(&r, "rep movsb onto itself", ERR_W | ERR_U, target2, 0);
    set(entry[3], (reg_t)frame[3] | PTE_P | PTE_W | PTE_U, target2);
    must_end(&r, "rep movsb onto itself");
    for (uint32_t k = 0; k < 21; k++)
        check(frame[3][k] == 0x77, "rep movsb onto itself: byte %u is %x", k, frame[3][k]);
}

/* ---- faults of instructions that use the stack, in ring 3 ---- */

static void stacks(void *unused)
{
    (void)unused;
    enum { W = sizeof(reg_t) };
    reg_t low = region() + 0x20000, high = low + PAGE_SIZE, data = high + PAGE_SIZE;
    uint8_t *frame[2] = { alloc_page(), alloc_page() };
    volatile reg_t *entry[3] = { entry_of(low, 0), entry_of(high, 0), entry_of(data, 0) };
    static const struct { const char *name; const uint8_t *code; uint32_t missing; int32_t sp, cr2; reg_t error; } tests[] = {
        { "push", s_push, 0, 0, -W, ERR_U | ERR_W },        { "call", s_call, 0, 0, -W, ERR_U | ERR_W },
        { "push over the border, lower page absent", s_push, 0, 1, 1 - W, ERR_U | ERR_W },
        { "push over the border, upper page absent", s_push, 1, 1, 0, ERR_U | ERR_W },
        { "call over the border, upper page absent", s_call, 1, 1, 0, ERR_U | ERR_W },
        { "pop", s_pop, 1, 0, 0, ERR_U },                   { "ret", s_ret, 1, 8, 8, ERR_U },
        { "pop over the border", s_pop, 1, -1, 0, ERR_U },  { "ret over the border", s_ret, 1, -2, 0, ERR_U },
        { "pop to memory, target absent", s_pop_memory, 2, 16, 0, ERR_U | ERR_W },
        { "push from memory, source absent", s_push_memory, 2, 16, 0, ERR_U },
        { "push from memory, stack absent", s_push_memory, 0, 0, -W, ERR_U | ERR_W },
        { "leave", s_leave, 1, 0, 0, ERR_U },
        { "iret", s_iret, 1, 0, 0, ERR_U },                 { "iret, second word", s_iret, 1, -W, 0, ERR_U },
    };
    for (uint32_t i = 0; i < array_size(tests); i++) {
        for (uint32_t p = 0; p < 3; p++)
            set(entry[p], (reg_t)frame[p & 1] | PTE_W | PTE_U | (p == tests[i].missing ? 0 : PTE_P), low + p * PAGE_SIZE);
        memset(frame[0], 0x5A, PAGE_SIZE);
        memset(frame[1], 0x5A, PAGE_SIZE);
        struct run r = prepare(tests[i].code, 3, data, 0x11223344);
        r.t.sp = r.t.bp = high + (reg_t)tests[i].sp;
        reg_t cr2 = tests[i].missing == 2 ? data : high + (reg_t)tests[i].cr2, bp = r.t.bp;
        char what[80];
        snprintf(what, sizeof what, "CPU %u: %s", cpu_index(), tests[i].name);
        if (tests[i].code == s_iret) {                  /* some emulators read this frame with ring 0's rights */
            struct run again = r;
            run_code(&again);
            if (again.t.vector == VECTOR_PF && again.t.error == 0) {
                if (!cpu_index())
                    printf("paging: %s in ring 3 faults with error code 0 instead of 4: not checked on this machine\n", tests[i].name);
                continue;
            }
        }
        must_fault(&r, what, tests[i].error, cr2, 0);
        check(r.t.ax == 0x11223344 && r.t.bp == bp, "%s: eax became %lx, ebp %lx", what, r.t.ax, r.t.bp);
        for (uint32_t k = 0; k < 2 * PAGE_SIZE; k++)
            check(frame[k / PAGE_SIZE][k % PAGE_SIZE] == 0x5A, "%s: a part was written", what);
    }
}

/* ---- accessed and dirty bits on every level ---- */

static void clear_bits(reg_t va, int leaf)
{
    for (int level = leaf; level < LEVELS; level++)
        __atomic_and_fetch(entry_of(va, level), ~(reg_t)(PTE_A | PTE_D), __ATOMIC_SEQ_CST);
    write_cr3(read_cr3());
    invlpg((void *)va);
}

static void expect_bits(const char *what, reg_t va, int leaf, reg_t bits)
{
    for (int level = leaf; level < LEVELS; level++) {
        reg_t e = *entry_of(va, level), want = level == leaf ? bits : PTE_A;
        if (!(bits & PTE_A))
            continue;
        check((e & (PTE_A | PTE_D)) == want, "%s: level %d of %lx has A,D = %lx instead of %lx", what, level + 1, va, e & (PTE_A | PTE_D), want);
    }
}

static uint32_t bits_checked;

static void bits_of(reg_t va, int leaf, volatile uint32_t *home, const char *kind)
{
    static const struct { const char *name; const uint8_t *code; bool dirty; } accesses[] = {
        { "read", s_read, false }, { "fetch", s_exec, false }, { "write", s_write, true }, { "locked add", s_rmw, true }, { "xchg", s_xchg, true },
        { "failing cmpxchg8b", s_cmpxchg8b, true }, { "8-byte write", s_write8, true }, { "rep movsb from", s_movs, false },
        { "rep stosl to", s_stos, true }, { "push from", s_push_memory, false }, { "pop to", s_pop_memory, true },
    };
    for (uint32_t n = 0; n < 2 * array_size(accesses); n++) {
        uint32_t i = n / 2, ring = n & 1 ? 3 : 0;
        char what[80];
        snprintf(what, sizeof what, "ring %u %s, %s page", ring, accesses[i].name, kind);
        if (!ring && (accesses[i].code == s_push_memory || accesses[i].code == s_pop_memory))
            continue;                                   /* unbalanced: only on a stack of its own */
        *home = CODE_CANARY;
        struct run r = prepare(accesses[i].code, ring, va, 1);
        if (accesses[i].code == s_movs) {
            r.t.si = va;
            r.t.di = (reg_t)user_stack[cpu_index()];
        }
        r.t.cx = accesses[i].code == s_movs || accesses[i].code == s_stos ? 1 : 0;
        clear_bits(va, leaf);
        must_end(&r, what);
        expect_bits(what, va, leaf, PTE_A | (accesses[i].dirty ? PTE_D : 0));
        bits_checked++;
        if (!accesses[i].dirty) {                       /* a write that follows must find its way to D past the TLB */
            r = prepare(s_write, ring, va, 1);
            must_end(&r, what);
            expect_bits(what, va, leaf, PTE_A | PTE_D);
        }
    }
    clear_bits(va, leaf);
    for (int level = leaf; level < LEVELS; level++)
        check(level > leaf || !(*entry_of(va, level) & (PTE_A | PTE_D)), "A or D came back without an access");
}

static void bits(void)
{
    reg_t va = region() + 0x30000;
    uint8_t *frame = alloc_page();
    asm volatile("fninit; fldpi");
    set(entry_of(va, 0), (reg_t)frame | PTE_P | PTE_W | PTE_U, va);
    bits_of(va, 0, (uint32_t *)frame, "4 KB");
    volatile reg_t *directory = entry_of(va, 1);
    reg_t table = *directory, at = region() + LARGE / 2;
    set(directory, large_frame | PTE_P | PTE_W | PTE_U | PTE_LARGE, at);
    bits_of(at, 1, (uint32_t *)(large_frame + LARGE / 2), sizeof(reg_t) == 8 ? "2 MB" : "4 MB");
    set(directory, table, at);
    printf("paging: A and D on every level, 4 KB and large pages: %u kinds of access\n", bits_checked);
}

/* ---- the own TLB: invlpg, CR3, global pages, entries that become better ---- */

static uint32_t look(reg_t va) { return *(volatile uint32_t *)va; }

static void tlb(void *unused)
{
    (void)unused;
    reg_t va = region() + 0x40000, cr4 = read_cr4();
    uint32_t *frame[2] = { alloc_page(), alloc_page() };
    volatile reg_t *entry = entry_of(va, 0), *directory = entry_of(va, 1);
    frame[0][1] = 1;
    frame[1][1] = 2;
    uint32_t kept = 0, rounds = 200;
    for (uint32_t r = 0; r < rounds; r++) {
        reg_t now = (reg_t)frame[r & 1] | PTE_P | PTE_W;
        uint32_t want = 1 + (r & 1);
        set(entry, (reg_t)frame[!(r & 1)] | PTE_P | PTE_W, va);
        look(va + 4);
        set(entry, now, va + 0xABC);                    /* any address in the page will do */
        check(look(va + 4) == want, "CPU %u: the old page is there after INVLPG", cpu_index());

        *entry = (reg_t)frame[!(r & 1)] | PTE_P | PTE_W;
        write_cr3(read_cr3());
        check(look(va + 4) == 3 - want, "CPU %u: the old page is there after a new CR3", cpu_index());

        write_cr4(cr4 | 0x80);                          /* PGE */
        set(entry, now | PTE_G, va);
        look(va + 4);
        *entry = (reg_t)frame[!(r & 1)] | PTE_P | PTE_W | PTE_G;
        write_cr3(read_cr3());
        kept += look(va + 4) == want;
        invlpg((void *)va);
        check(look(va + 4) == 3 - want, "CPU %u: the old global page is there after INVLPG", cpu_index());
        *entry = now | PTE_G;
        write_cr4(cr4 & ~0x80ul);
        check(look(va + 4) == want, "CPU %u: the old global page is there after PGE was cleared", cpu_index());
        write_cr4(cr4);

        set(entry, 0, va);                              /* what is absent is never cached */
        struct run w = prepare(s_write, 0, va + 8, 9);
        must_fault(&w, "write to an absent page", ERR_W, va + 8, 0);
        *entry = (reg_t)frame[0] | PTE_P;
        struct run f = prepare(s_read, 0, va + 4, 0);
        must_end(&f, "read of a page that has become present, without INVLPG");
        *entry = (reg_t)frame[0] | PTE_P | PTE_W;       /* a better entry may fault once more, the fault drops the old one */
        for (uint32_t tries = 0; tries < 2; tries++) {
            f = prepare(s_write, 0, va + 8, r);
            run_code(&f);
            if (f.t.vector == END)
                break;
            check(!tries, "CPU %u: a page that has become writable faults again and again", cpu_index());
        }
        check(frame[0][2] == r, "CPU %u: the write to a page that has become writable is lost", cpu_index());

        reg_t table = *directory, *other = alloc_page();        /* another page table: INVLPG forgets the upper levels, too */
        memcpy(other, (void *)(table & ~(reg_t)0xFFF & ~PTE_NX), PAGE_SIZE);
        other[entry - (reg_t *)(table & ~(reg_t)0xFFF & ~PTE_NX)] = (reg_t)frame[1] | PTE_P | PTE_W;
        look(va + 4);
        *directory = (reg_t)other | 7;
        invlpg((void *)va);
        check(look(va + 4) == 2, "CPU %u: the old page table is used after INVLPG", cpu_index());
        *directory = table;
        invlpg((void *)va);
        check(look(va + 4) == 1, "CPU %u: the old page table is used after INVLPG", cpu_index());
        free_page(other);
    }
    if (!cpu_index())
        printf("paging: own TLB: INVLPG, CR3, CR4.PGE, better entries: %u rounds a CPU; a global page outlived CR3 in %u of %u\n",
               rounds, kept, rounds);
}

/* ---- races: one CPU clears entries while the others walk through them ---- */

static reg_t race_va;
static volatile reg_t *race_entry;
static volatile bool race_over;
static volatile uint32_t race_steps;                    /* of CPU 1 */
static volatile uint32_t race_faults[MAX_CPUS];
static struct { uint32_t rounds, accessed, dirty, faults, resurrected; } race;

static void retry_fault(struct trap *t)                 /* the entry comes back sooner or later */
{
    reg_t cr2 = read_cr2();
    check(cr2 - race_va < LARGE && !(t->cs & 3), "CPU %u: page fault at %lx, error %lx, ip %lx", cpu_index(), cr2, t->error, t->ip);
    race_faults[cpu_index()]++;
}

static void walk(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    volatile uint32_t *p = (uint32_t *)race_va + 16 * me;
    for (uint32_t i = 0; !race_over; i++) {
        if (me == 1)
            race_steps = i;
        invlpg(p);                                      /* so that each access walks */
        if (i & 1)
            *p = i;
        else
            (void)*p;
        invlpg(p);
        asm volatile("lock incl %0" : "+m"(*p) : : "cc");
    }
}

enum race_kind { XCHG, READ_ONLY_BY_CMPXCHG, ABSENT_BY_CMPXCHG };

static void race_entries(enum race_kind kind, reg_t good, reg_t gone_bits)
{
    /* With more CPUs than host cores most rounds wait for a CPU that does not run: there time sets the end. */
    uint64_t end = ncpus > 2 ? rdtsc() + us_to_tsc(300000) * scale : ~0ull;
    for (uint32_t r = 0, random = 11; r < race.rounds; r++) {
        if (r % 64 == 0 && rdtsc() > end)
            race.rounds = r;
        *race_entry = good;
        /* Until a walk has set A or another CPU has moved on, so that they run at the same time; not for ever: it may have
           lost its core. Then a moment of random length, to meet the next walk anywhere. */
        uint32_t before = race_steps;
        for (uint32_t spin = 0; spin < 1500 && (r & 1 ? !(*race_entry & PTE_A) : race_steps == before); spin++)
            compiler_barrier();
        for (uint32_t spin = random32(&random) % 256; spin; spin--)
            compiler_barrier();
        reg_t old, gone = 0;
        if (kind == XCHG)
            old = __atomic_exchange_n(race_entry, 0, __ATOMIC_SEQ_CST);
        else {
            old = *race_entry;
            do
                gone = (old & ~gone_bits) & ~(reg_t)(PTE_A | PTE_D);
            while (!__atomic_compare_exchange_n(race_entry, &old, gone, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
        }
        race.accessed += !!(old & PTE_A);
        race.dirty += !!(old & PTE_D);
        check(((old ^ good) & ~(reg_t)(PTE_A | PTE_D)) == 0, "an entry changed from %lx to %lx by itself", good, old);
        for (uint32_t look = 0; look < 48; look++) {
            reg_t now = *race_entry;
            if (kind == READ_ONLY_BY_CMPXCHG)
                now &= ~(reg_t)PTE_A;                   /* a read may still set this one */
            if (now != gone) {
                race.resurrected++;
                break;
            }
        }
    }
}

static void races(uint32_t rounds)
{
    uint8_t *frame = alloc_page();
    volatile reg_t *entries[2];
    race_va = region();
    entries[0] = entry_of(race_va, 0);
    entries[1] = entry_of(race_va, 1);
    reg_t table = *entries[1];
    const struct { const char *name; enum race_kind kind; uint32_t level, share; reg_t good, bits; } tests[] = {
        { "xchg with 0, 4 KB page", XCHG, 0, 1, (reg_t)frame | PTE_P | PTE_W, 0 },
        { "cmpxchg to read-only, 4 KB page", READ_ONLY_BY_CMPXCHG, 0, 4, (reg_t)frame | PTE_P | PTE_W, PTE_W },
        { "cmpxchg to absent, 4 KB page", ABSENT_BY_CMPXCHG, 0, 4, (reg_t)frame | PTE_P | PTE_W, PTE_P },
        { "xchg with 0, page directory entry", XCHG, 1, 4, table & ~(reg_t)(PTE_A | PTE_D), 0 },
        { "xchg with 0, large page", XCHG, 1, 4, large_frame | PTE_P | PTE_W | PTE_LARGE, 0 },
        { "cmpxchg to read-only, large page", READ_ONLY_BY_CMPXCHG, 1, 4, large_frame | PTE_P | PTE_W | PTE_LARGE, PTE_W },
    };
    on_vector(VECTOR_PF, retry_fault);
    for (uint32_t i = 0; i < array_size(tests); i++) {
        memset(&race, 0, sizeof race);
        race.rounds = rounds / tests[i].share;
        race_over = false;
        *entries[0] = (reg_t)frame | PTE_P | PTE_W;
        *entries[1] = table;
        race_entry = entries[tests[i].level];
        uint64_t start = rdtsc();
        for (uint32_t c = 1; c < ncpus; c++)
            run_on(c, walk, 0);
        race_entries(tests[i].kind, tests[i].good, tests[i].bits);
        *race_entry = tests[i].good;
        race_over = true;
        for (uint32_t c = 1; c < ncpus; c++) {
            wait_done(c);
            race.faults += race_faults[c];
            race_faults[c] = 0;
        }
        printf("paging: %-36s %8u cleared: %u had A, %u had D, %u faults, %u came back (%u us)\n", tests[i].name, race.rounds,
               race.accessed, race.dirty, race.faults, race.resurrected, tsc_to_us(rdtsc() - start));
        check(!race.resurrected, "%s: %u of %u cleared entries got bits from another CPU's walk", tests[i].name, race.resurrected, race.rounds);
    }
    *entries[1] = table;
    set(entries[0], 0, race_va);
    catch(VECTOR_PF);
}

/* ---- shootdown: after the last acknowledgement nobody uses the old entry ---- */

enum { VECTOR_SHOOT = 0x50, TAG = 0x1000000, POISON = 0xDEAD };
static struct { volatile uint32_t sequence, by_cr3; } shoot;
static volatile uint32_t acks[MAX_CPUS], stale_reads[MAX_CPUS], uses[MAX_CPUS];

static void handle_shoot(struct trap *t)
{
    (void)t;
    if (shoot.by_cr3)
        write_cr3(read_cr3());
    else
        invlpg((void *)race_va);
    acks[cpu_index()] = shoot.sequence;
    lapic_eoi();
}

static void use_page(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    volatile uint32_t *page = (uint32_t *)race_va;
    for (uint32_t i = 1; !race_over; i++) {
        stale_reads[me] += page[0] == POISON;
        page[16 + me] = i;
        stale_reads[me] += *(volatile uint8_t *)page == (POISON & 0xFF);
        asm volatile("lock incl %0" : "+m"(page[64 + me]) : : "cc");
        uses[me]++;
    }
}

static void shootdown(uint32_t rounds)
{
    uint32_t *frame[2] = { alloc_page(), alloc_page() }, late = 0, stale = 0, before[160];
    race_va = region();
    race_entry = entry_of(race_va, 0);
    race_over = false;
    frame[0][0] = frame[1][0] = TAG;
    set(race_entry, (reg_t)frame[0] | PTE_P | PTE_W, race_va);
    on_vector(VECTOR_PF, retry_fault);
    on_vector(VECTOR_SHOOT, handle_shoot);
    uint64_t start = rdtsc();
    for (uint32_t c = 1; c < ncpus; c++)
        run_on(c, use_page, 0);
    for (uint32_t r = 0; r < rounds; r++) {
        uint32_t *old = frame[r & 1], *new = frame[!(r & 1)], how = r % 3;
        for (uint32_t c = 1, used = uses[1]; c < ncpus; c = ncpus)      /* somebody has it in the TLB */
            spin_until(uses[1] != used, "another CPU to use the page");
        *race_entry = how == 0 ? (reg_t)new | PTE_P | PTE_W : how == 1 ? (reg_t)old | PTE_P : (reg_t)old;
        invlpg((void *)race_va);
        shoot.by_cr3 = r / 3 & 1;
        shoot.sequence++;
        lapic_icr(0, ICR_OTHERS | ICR_ASSERT | VECTOR_SHOOT);
        for (uint32_t c = 1; c < ncpus; c++)
            spin_until(acks[c] == shoot.sequence, "the others to acknowledge a shootdown");
        memcpy(before, old, sizeof before);
        if (how != 1)
            old[0] = before[0] = POISON;
        for (uint32_t spin = 0; spin < 300; spin++)
            compiler_barrier();
        late += !!memcmp(before, old, sizeof before);
        old[0] = TAG;
        *race_entry = (reg_t)new | PTE_P | PTE_W;
        if (how == 1) {                                 /* from one frame to the other: once more, properly */
            invlpg((void *)race_va);
            shoot.sequence++;
            lapic_icr(0, ICR_OTHERS | ICR_ASSERT | VECTOR_SHOOT);
            for (uint32_t c = 1; c < ncpus; c++)
                spin_until(acks[c] == shoot.sequence, "the others to acknowledge a shootdown");
        }
    }
    race_over = true;
    for (uint32_t c = 1; c < ncpus; c++) {
        wait_done(c);
        stale += stale_reads[c];
        race.faults += race_faults[c];
    }
    printf("paging: %-36s %8u rounds: %u stale reads, %u late writes (%u us)\n", "shootdown: moved, read-only, absent", rounds,
           stale, late, tsc_to_us(rdtsc() - start));
    check(!stale && !late, "after all had acknowledged a shootdown: %u reads of the old page, %u times a write to it", stale, late);
    catch(VECTOR_PF);
}

void guest_main(void)
{
    uint32_t rounds = option_number("rounds", 200000) * scale;
    check(memory_bytes >= 40u << 20, "needs 48 MB of memory");
    large_frame = 32 << 20;
    for (uint32_t v = 0; v <= 20; v++)
        if (v != 2)
            catch(v);
    catch(END);
    user_code = user_page();
    check(snippets_end - snippets < (long)PAGE_SIZE, "the snippets do not fit a page");
    memcpy(user_code, snippets, (size_t)(snippets_end - snippets));
    for (uint32_t i = 0; i < ncpus; i++)
        user_stack[i] = user_page();

    const struct { const char *word, *name; job_t job; } jobs[] = {
        { "faults", "faults by every mix of P, W, U, NX, WP, NXE and ring", every_fault },
        { "frames", "accesses over two pages, restarted", over_two_pages },
        { "frames", "string instructions, restarted", strings },
        { "frames", "push, pop, call, ret, leave, iret", stacks },
        { "tlb", "own TLB", tlb },
    };
    for (uint32_t i = 0; i < ncpus; i++)
        nx_on[i] = has_nx;
    probe_reserved();
    for (uint32_t i = 0; i < array_size(jobs); i++)
        if (option_is("only", jobs[i].word)) {
            uint64_t start = rdtsc();
            uint32_t before = faults_seen;
            run_on_all(jobs[i].job, 0);
            printf("paging: %-54s %6u faults as they should be (%u us)\n", jobs[i].name, faults_seen - before, tsc_to_us(rdtsc() - start));
        }
    if (option_is("only", "bits"))
        bits();
    if (ncpus > 1 && option_is("only", "race"))
        races(rounds);
    if (ncpus > 1 && option_is("only", "shoot"))
        shootdown(rounds / 200 / (ncpus * ncpus));
    pass("%u faults checked on %u CPU%s%s", faults_seen, ncpus, ncpus == 1 ? "" : "s", ncpus == 1 ? "; no races with 1 CPU" : "");
}
