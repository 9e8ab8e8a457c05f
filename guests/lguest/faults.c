/* Page tables: which access faults with which error code and cr2, what SET_PTE, SET_PGD, FLUSH_TLB and NEW_PGTABLE do, and
   the accessed and dirty bits in the Guest's own entries. */
#include "abi.h"

SNIPPET(load, "mov (%eax), %ebx");
SNIPPET(store, "mov %ebx, (%eax)");
SNIPPET(jump, "jmp *%eax");
SNIPPET(add_to, "lock incl (%eax)");
SNIPPET(load_back, "mov (%eax), %ebx");
SNIPPET(fill, "rep stosb");

enum { READ = 0, WRITE = 2, USER = 4, PRESENT = 1 };
#define AT (FREE_VA + 0x800000)                         /* two pages there, a page table of its own */

static uint8_t *frame, *other_frame, *code_page, *stack_page;

static void set_up(void)
{
    if (frame)
        return;
    frame = alloc_page();
    other_frame = alloc_page();
    code_page = user_page();
    stack_page = user_page();
    memset(frame, 0x90, PAGE_SIZE);
    memcpy(frame + 0x100, "\xCD\x80", 2);
}

static struct run access(const uint8_t *code, reg_t address, bool user)
{
    struct run r = user ? ring3(copy_to_user(code_page, code, 64), (uint32_t)(uintptr_t)stack_page + PAGE_SIZE) : ring1(code);
    r.t.ax = address;
    return r;
}

static void try(const uint8_t *code, const char *what, reg_t flags, reg_t directory_flags, bool user, bool fault, uint32_t error)
{
    char text[100];
    snprintf(text, sizeof text, "%s in ring %d, entry %lx, directory %lx", what, user ? 3 : 1, flags, directory_flags);
    reg_t *directory = &page_root[AT >> 22];
    *pte_of(AT, true) = flags ? pa(frame) | flags : 0;
    *directory = (*directory & ~0xFFFul) | directory_flags;
    hypercall1(FLUSH_TLB, 1);
    reg_t address = code == jump ? AT + 0x100 : AT + 0x200;     /* at the first there is an INT 0x80 */
    struct run r = access(code, address, user);
    catch(14);
    run_code(&r);
    on_vector(14, 0);
    check(r.t.vector == (fault ? 14 : END), "%s: vector %lu, error %lx", text, r.t.vector, r.t.error);
    /* Emulators do a locked operation in two steps when there is nobody to see it: the first is a read. */
    check(!fault || r.t.error == error || (code == add_to && r.t.error == (error & ~WRITE)), "%s: error code %lx instead of %x", text,
          r.t.error, error);
    if (fault) {
        check(r.cr2 == address, "%s: cr2 is %lx", text, r.cr2);
        check(r.t.ip == (code == jump ? address : user ? (reg_t)code_page : (reg_t)code), "%s: ip is %lx", text, r.t.ip);
    }
    *directory = (*directory & ~0xFFFul) | PTE_P | PTE_W | PTE_U;
}

/* All combinations of present, writable and user in both levels, for reads, writes, jumps, in both rings. */
static void codes(void)
{
    set_up();
    const struct { const uint8_t *code; const char *what; bool write; } accesses[] = {
        { load, "a read", false }, { store, "a write", true }, { jump, "a jump", false }, { add_to, "a locked increment", true },
    };
    for (uint32_t a = 0; a < array_size(accesses); a++)
        for (uint32_t flags = 0; flags < 8; flags++)
            for (uint32_t above = 0; above < 8; above++)
                for (int user = 0; user < 2; user++) {
                    if ((!(flags & PTE_P) && flags) || (!(above & PTE_P) && above))
                        continue;
                    bool present = flags & above & PTE_P, writable = flags & above & PTE_W, open = flags & above & PTE_U;
                    bool fault = !present || (accesses[a].write && !writable) || (user && !open);
                    try(accesses[a].code, accesses[a].what, flags, above, user, fault,
                        (present ? PRESENT : 0) | (accesses[a].write ? WRITE : READ) | (user ? USER : 0));
                }
}

/* ---- accessed and dirty ---- */

static reg_t bits(void) { return *(volatile reg_t *)pte_of(AT, true) & (PTE_A | PTE_D); }

static void touch(const uint8_t *code, bool user)
{
    struct run r = access(code, AT + 0x200, user);
    run_to_trap(&r, END, 0, "touching a page");
}

static void accessed_dirty(void)
{
    set_up();
    for (int user = 0; user < 2; user++) {
        map_page(AT, pa(frame), PTE_W | PTE_U);
        check(bits() == 0, "a fresh entry has the bits %lx", bits());
        touch(load, user);
        check(bits() == PTE_A, "after a read the bits are %lx", bits());
        touch(load_back, user);
        touch(store, user);                             /* its translation is there already, but clean */
        check(bits() == (PTE_A | PTE_D), "after a read and a write the bits are %lx", bits());
        map_page(AT, pa(frame), PTE_W | PTE_U);
        touch(store, user);
        check(bits() == (PTE_A | PTE_D), "after a write the bits are %lx", bits());
        map_page(AT, pa(frame), PTE_W | PTE_U | PTE_D);
        touch(load, user);
        check(bits() == (PTE_A | PTE_D), "after a read of a dirty page the bits are %lx", bits());
        map_page(AT, pa(frame), PTE_W | PTE_U);
        struct run r = access(jump, AT + 0x100, user);
        run_to_trap(&r, END, 0, "running on a page");
        check(bits() == PTE_A, "after running on it the bits are %lx", bits());
        /* Forgotten with the entry. */
        *pte_of(AT, true) &= ~(reg_t)(PTE_A | PTE_D);
        hypercall3(SET_PTE, pa(page_root), AT, *pte_of(AT, true));
        touch(load, user);
        check(bits() == PTE_A, "cleared, told, read: the bits are %lx", bits());
        /* A fault sets neither. */
        map_page(AT, pa(frame), user ? PTE_W : 0);
        r = access(user ? load : store, AT, user);
        run_to_trap(&r, 14, user ? PRESENT | USER : PRESENT | WRITE, "a refused access");
        check(bits() == 0, "after a refused access the bits are %lx", bits());
    }
    map_page(AT, pa(frame), PTE_W | PTE_G);             /* global: dropped, not refused */
    touch(store, false);
    unmap_page(AT);
}

/* ---- what makes the Host look again ---- */

static uint32_t word(void) { return *(volatile uint32_t *)AT; }

static void telling(void)
{
    set_up();
    *(uint32_t *)frame = 0x11111111;
    *(uint32_t *)other_frame = 0x22222222;
    map_page(AT, pa(frame), PTE_W);
    check(word() == 0x11111111, "SET_PTE: %x", word());
    for (int i = 0; i < 4; i++) {
        reg_t entry = pa(i & 1 ? frame : other_frame) | PTE_P | PTE_W;
        uint32_t wanted = i & 1 ? 0x11111111 : 0x22222222;
        *(volatile reg_t *)pte_of(AT, true) = entry;
        if (i == 0)
            hypercall3(SET_PTE, pa(page_root), AT, entry);
        else if (i == 1)
            hypercall1(FLUSH_TLB, 1);
        else if (i == 2)
            hypercall2(SET_PGD, pa(page_root), AT >> 22);
        else
            hypercall3(SET_PTE, 0x12345000, AT, entry);         /* kernel addresses: of every directory */
        check(word() == wanted, "change %d of a page that was told: %x instead of %x", i, word(), wanted);
    }
    /* From absent to present nobody needs to be told. */
    unmap_page(AT);
    *(volatile reg_t *)pte_of(AT, true) = pa(frame) | PTE_P;
    check(word() == 0x11111111, "a page that has become present: %x", word());
    unmap_page(AT);
    struct run r = access(load, AT, false);
    run_to_trap(&r, 14, READ, "an unmapped page");
    hypercall2(SET_PGD, 0x12345000, 5);                 /* unknown: ignored */
    hypercall2(SET_PGD, pa(page_root), 1024);           /* lguest's off by one */
    hypercall3(SET_PTE, 0x12345000, 0x400000, 0);
    map_page(AT, pa(frame), 0);
}

/* ---- two directories ---- */

static void directories(void)
{
    set_up();
    map_page(AT, pa(frame), PTE_W | PTE_U);
    reg_t *second = alloc_page(), *table[2] = { alloc_page(), alloc_page() };
    memcpy(second, page_root, PAGE_SIZE);
    const reg_t low = 0x40000000 + 5 * PAGE_SIZE;       /* of the user's half */
    *(uint32_t *)frame = 0x11111111;
    *(uint32_t *)other_frame = 0x22222222;
    reg_t *roots[2] = { page_root, second };
    for (int i = 0; i < 2; i++) {
        table[i][low >> 12 & 0x3FF] = pa(i ? other_frame : frame) | PTE_P | PTE_W | PTE_U;
        roots[i][low >> 22] = pa(table[i]) | PTE_P | PTE_W | PTE_U;
    }
    for (int round = 0; round < 50; round++) {
        int i = round & 1;
        hypercall1(NEW_PGTABLE, pa(roots[i]));
        uint32_t v = *(volatile uint32_t *)low;
        check(v == (i ? 0x22222222 : 0x11111111), "with directory %d: %x", i, v);
    }
    /* SET_PTE of a directory that is not in use now. */
    hypercall1(NEW_PGTABLE, pa(page_root));
    table[1][low >> 12 & 0x3FF] = pa(frame) | PTE_P | PTE_U;
    hypercall3(SET_PTE, pa(second), low, table[1][low >> 12 & 0x3FF]);
    hypercall1(NEW_PGTABLE, pa(second));
    check(*(volatile uint32_t *)low == 0x11111111, "SET_PTE of the other directory had no effect");
    struct run r = access(store, low, true);
    run_to_trap(&r, 14, PRESENT | WRITE | USER, "a read-only page of the second directory");
    hypercall1(NEW_PGTABLE, pa(page_root));
    r = access(store, low, true);
    run_to_trap(&r, END, 0, "a writable page of the first directory");
    /* More of them than the four that lguest kept. */
    reg_t *many[8];
    for (uint32_t i = 0; i < 8; i++) {
        many[i] = alloc_page();
        memcpy(many[i], roots[i & 1], PAGE_SIZE);
    }
    for (uint32_t i = 0; i < 64; i++) {
        hypercall1(NEW_PGTABLE, pa(many[i % 8]));
        touch(load, true);
    }
    hypercall1(NEW_PGTABLE, pa(page_root));
    page_root[low >> 22] = 0;
    hypercall2(SET_PGD, pa(page_root), low >> 22);
    r = access(load, low, true);
    run_to_trap(&r, 14, USER, "a directory entry that is gone");
}

/* ---- an access over two pages, and instructions that go on after the fault was mended ---- */

static volatile uint32_t mended, last_fault;
static void mend(struct trap *t)
{
    (void)t;
    last_fault = (uint32_t)fault_address();
    mended++;
    map_page(last_fault & ~0xFFFu, pa(alloc_page()), PTE_W | PTE_U);
}

static void mending(void)
{
    set_up();
    reg_t base = AT + 0x10000;
    map_page(base, pa(frame), PTE_W);
    unmap_page(base + PAGE_SIZE);
    struct run r = access(store, base + PAGE_SIZE - 2, false);
    uint16_t before = *(volatile uint16_t *)(base + PAGE_SIZE - 2);
    r.t.bx = ~before;
    run_to_trap(&r, 14, WRITE, "a write over two pages, the second of which is not there");
    check(r.cr2 == base + PAGE_SIZE, "it faulted at %lx instead of the second page", r.cr2);
    check(*(volatile uint16_t *)(base + PAGE_SIZE - 2) == before, "it wrote its first half all the same");

    for (int user = 0; user < 2; user++) {              /* eight pages, none of which is there */
        for (uint32_t i = 0; i < 8; i++)
            unmap_page(base + 0x20000 + i * PAGE_SIZE);
        mended = 0;
        on_vector(14, mend);
        r = access(fill, 0, user);
        r.t.di = base + 0x20000 + 100;
        r.t.cx = 7 * PAGE_SIZE;
        r.t.ax = 0x5A;
        catch(END);
        run_code(&r);
        on_vector(14, 0);
        check(r.t.vector == END && r.t.cx == 0 && mended == 8, "REP STOSB over 8 absent pages: vector %lu, %u faults, ecx %lx", r.t.vector, mended, r.t.cx);
        for (uint32_t i = 0; i < 7 * PAGE_SIZE; i += 97)
            check(((volatile uint8_t *)base)[0x20000 + 100 + i] == 0x5A, "REP STOSB left out byte %u", i);
    }
}

const struct subject fault_subjects[] = {
    { "fault-codes", codes, PAGED }, { "accessed-dirty", accessed_dirty, PAGED }, { "telling", telling, PAGED },
    { "directories", directories, PAGED }, { "mending", mending, PAGED }, { 0, 0, 0 },
};
