/* The GDT that the Guest asked for and the one that it gets; TLS; the stack for ring 3. */
#include "abi.h"

enum { SLOT = 21, SELECTOR = SLOT << 3 | 1 };
SNIPPET(read_gs, "mov %eax, %gs; mov %gs:0, %ebx; mov %gs:4, %ecx");
SNIPPET(far_call, "lcall $0xA8, $0");
SNIPPET(load_fs, "mov %eax, %fs");

static uint32_t access_byte(uint32_t selector)
{
    uint32_t rights;
    check(rights_of(selector, &rights), "the descriptor of selector %x cannot be seen", selector);
    return rights >> 8 & 0xFF;
}

static void fixups(void)
{
    static const struct { uint8_t wish, get; } wishes[] = {
        { 0x92, 0xB3 }, { 0x93, 0xB3 }, { 0xB2, 0xB3 },         /* data: ring 0 means ring 1, accessed is forced */
        { 0x9A, 0xBB }, { 0xBA, 0xBB }, { 0xF2, 0xF3 }, { 0xFA, 0xFB },
    };
    for (uint32_t i = 0; i < array_size(wishes); i++) {
        gdt_set(SLOT, segment(0, 100 + i, wishes[i].wish, 0x4));
        uint32_t limit, got = access_byte(SELECTOR);
        check(got == wishes[i].get, "access byte %x became %x instead of %x", wishes[i].wish, got, wishes[i].get);
        check(limit_of(SELECTOR, &limit) && limit == 100 + i, "the limit is %u", limit);
    }
    /* Not present: loading it is #NP with the selector. */
    gdt_set(SLOT, segment(0, 100, 0x72, 0x4));
    struct run r = ring1(load_fs);
    r.t.ax = SELECTOR;
    run_to_trap(&r, 11, SELECTOR & ~3u, "loading a segment that is not present");
    /* A null descriptor is not there at all. */
    gdt_set(SLOT, 0);
    uint32_t any;
    check(!limit_of(SELECTOR, &any), "an empty descriptor has the limit %u", any);
    r = ring1(load_fs);
    r.t.ax = SELECTOR;
    run_to_trap(&r, 13, SELECTOR & ~3u, "loading an empty descriptor");
    /* A base and a limit that the CPU heeds. */
    static uint32_t two_words[2] = { 0xCAFE0001, 0xCAFE0002 };
    gdt_set(SLOT, segment((uint32_t)(uintptr_t)two_words, 7, 0x92, 0x4));
    r = ring1(read_gs);
    r.t.ax = SELECTOR;
    run_to_trap(&r, END, 0, "reading through a segment");
    check(r.t.bx == two_words[0] && r.t.cx == two_words[1], "read %lx and %lx through a segment", r.t.bx, r.t.cx);
    gdt_set(SLOT, segment((uint32_t)(uintptr_t)two_words, 6, 0x92, 0x4));
    r = ring1(read_gs);
    r.t.ax = SELECTOR;
    catch(13);
    run_code(&r);
    on_vector(13, 0);
    if (r.t.vector == END)                              /* emulators do not look; a Guest can do no harm by it */
        printf("abi: segment limits are not enforced here\n");
    else
        check(r.t.vector == 13 && !r.t.error, "reading beyond a segment's limit: vector %lu, error %lx", r.t.vector, r.t.error);
    gdt_set(SLOT, 0);
}

/* The Switcher's own: written without a word, and nothing of it comes into effect. */
static void ignored(void)
{
    static const uint8_t theirs[] = { 10, 11, 16, 31 };
    for (uint32_t i = 0; i < array_size(theirs); i++) {
        gdt_set(theirs[i], segment(0, 77, 0xF2, 0x4));
        uint32_t limit;
        check(!limit_of((uint32_t)theirs[i] << 3 | 1, &limit) || limit != 77, "GDT entry %u was changed by the Guest", theirs[i]);
    }
    hypercall0(FLUSH_ASYNC);                            /* and the way out still works */
}

/* Call gates would be a way into ring 0. */
static void no_gates(void)
{
    static const uint16_t switcher_cs[] = { 0x50, 0x60 };
    for (uint32_t i = 0; i < 2; i++) {
        gdt_set(SLOT, (uint64_t)(uint32_t)(uintptr_t)far_call | (uint64_t)switcher_cs[i] << 16 | 0xEC00ull << 32);
        struct run r = ring1(far_call);
        catch(13);
        catch(11);
        run_code(&r);
        on_vector(13, 0);
        on_vector(11, 0);
        check(r.t.vector == 13 || r.t.vector == 11, "a call gate of the Guest's ended with vector %lu", r.t.vector);
        check((r.t.error & ~3ul) == 0xA8, "a call gate: error code %lx", r.t.error);
    }
    gdt_set(SLOT, 0);
}

/* ---- TLS ---- */

static uint32_t words[6] __attribute__((aligned(4)));

static void load_tls(uint32_t *base_of_first, uint32_t limit, uint32_t cpu)
{
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t d = segment((uint32_t)(uintptr_t)base_of_first + 8 * i, limit + i, 0xF2, 0x4);
        memcpy(&words[2 * i], &d, 8);
    }
    hypercall2(LOAD_TLS, pa(words), cpu);
}

static void tls(void)
{
    static uint32_t area[6] = { 1, 2, 3, 4, 5, 6 };
    static const uint32_t whose[] = { 0, 1, 77, 0xFFFFFFFF };   /* the CPU's number was never looked at */
    for (uint32_t n = 0; n < array_size(whose); n++) {
        load_tls(area, 7, whose[n]);
        for (uint32_t i = 0; i < 3; i++) {
            uint32_t limit, selector = (6 + i) << 3 | 3;
            check(limit_of(selector, &limit) && limit == 7 + i, "TLS entry %u has the limit %u", i, limit);
            struct run r = ring1(read_gs);
            r.t.ax = selector;
            run_to_trap(&r, END, 0, "reading through a TLS segment");
            check(r.t.bx == 2 * i + 1 && r.t.cx == 2 * i + 2, "TLS entry %u leads to %lu and %lu", i, r.t.bx, r.t.cx);
        }
    }
}

static void tls_in_ring3(void)
{
    uint8_t *code = user_page(), *data = user_page();
    ((uint32_t *)data)[0] = 0xABCD0001;
    ((uint32_t *)data)[1] = 0xABCD0002;
    load_tls((uint32_t *)data, PAGE_SIZE - 1, 0);
    struct run r = ring3(copy_to_user(code, read_gs, 64), (uint32_t)(uintptr_t)data + PAGE_SIZE);
    r.t.ax = 0x33;
    run_to_trap(&r, END, 0, "TLS in ring 3");
    check(r.t.bx == 0xABCD0001 && r.t.cx == 0xABCD0002, "TLS in ring 3 leads to %lx", r.t.bx);
    check(r.t.gs == 0x33, "gs is %lx after a system call", r.t.gs);
    r = ring3((uint32_t)(uintptr_t)code, (uint32_t)(uintptr_t)data + PAGE_SIZE);
    r.t.ax = SEL_PERCPU;
    run_to_trap(&r, 13, SEL_PERCPU & ~3u, "the kernel's per-CPU segment in ring 3");
}

/* ---- SET_STACK ---- */

SNIPPET(trap_now, "ud2");
static volatile uint32_t seen_sp;
static void handle_stack(struct trap *t)
{
    seen_sp = (uint32_t)(uintptr_t)(&t->ss + 1);
    leave_code(t);
}

static void stack(void)
{
    uint8_t *code = user_page(), *data = user_page(), *pages = alloc_pages(3);
    uint32_t usual = (uint32_t)(uintptr_t)this_cpu()->stack_top - STACK_SIZE / 2;
    const struct { uint32_t top, pages; } places[] = {
        { (uint32_t)(uintptr_t)pages + 2 * PAGE_SIZE, 2 }, { (uint32_t)(uintptr_t)pages + 2 * PAGE_SIZE + 1024, 2 },
        { (uint32_t)(uintptr_t)pages + 3 * PAGE_SIZE, 1 }, { (uint32_t)(uintptr_t)pages + 3 * PAGE_SIZE, 0 }, { usual, 2 },
    };
    for (uint32_t i = 0; i < array_size(places); i++) {
        hypercall3(SET_STACK, SEL_KDATA, places[i].top, places[i].pages);
        for (int direct = 0; direct < 2; direct++) {
            if (direct && !places[i].pages)
                continue;                               /* nobody has promised that the CPU can push there */
            idt_gate(6, 0, direct ? GATE_TRAP : GATE_INTERRUPT);
            struct run r = ring3(copy_to_user(code, trap_now, 64), (uint32_t)(uintptr_t)data + PAGE_SIZE);
            on_vector(6, handle_stack);
            run_code(&r);
            on_vector(6, 0);
            check(seen_sp == places[i].top, "SET_STACK %x: a %s trap pushed below %x", places[i].top, direct ? "direct" : "reflected", seen_sp);
        }
    }
    idt_gate(6, 0, GATE_INTERRUPT);

    /* Pinned: the page is written to, as far as its entry says, before anybody pushes. */
    map_page(FREE_VA + 0x50000, pa(pages), PTE_W);
    hypercall3(SET_STACK, SEL_KDATA, FREE_VA + 0x50000 + PAGE_SIZE, 1);
    check((*pte_of(FREE_VA + 0x50000, false) & (PTE_A | PTE_D)) == (PTE_A | PTE_D), "the stack's page is not pinned: entry %lx",
          *pte_of(FREE_VA + 0x50000, false));
    hypercall3(SET_STACK, SEL_KDATA, usual, 2);
    unmap_page(FREE_VA + 0x50000);
}

const struct subject segment_subjects[] = {
    { "gdt", fixups, ANY }, { "gdt-ignored", ignored, ANY }, { "gdt-gates", no_gates, ANY }, { "tls", tls, ANY },
    { "tls-ring3", tls_in_ring3, PAGED }, { "stack", stack, PAGED }, { 0, 0, 0 },
};
