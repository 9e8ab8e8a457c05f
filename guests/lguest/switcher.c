/* The Switcher is in every address space and nobody's business; what CPUID says. */
#include "abi.h"

SNIPPET(load, "mov (%eax), %ebx");
SNIPPET(store, "mov %ebx, (%eax)");
SNIPPET(jump, "jmp *%eax");
SNIPPET(locked, "lock incl (%eax)");
SNIPPET(string, "mov %eax, %edi; rep stosb");
SNIPPET(push_there, "mov %esp, %esi; mov %eax, %esp; push $1; mov %esi, %esp");

static const uint32_t places[] = { 0xFFC00000, 0xFFC00FFC, 0xFFC01000, 0xFFC01FC0, 0xFFC02000, 0xFFC02FFC, 0xFFC03000, 0xFFC20000, 0xFFD00000,
                                   0xFFFFF000, 0xFFFFFFFC };

static void one(const uint8_t *code, const char *what, uint32_t address, uint8_t *user, uint8_t *user_stack)
{
    struct run r = user ? ring3(copy_to_user(user, code, 64), (uint32_t)(uintptr_t)user_stack + PAGE_SIZE) : ring1(code);
    r.t.ax = address;
    r.t.bx = r.t.cx = 1;
    catch(14);
    run_code(&r);
    on_vector(14, 0);
    check(r.t.vector == 14, "%s at %x in ring %d ended with vector %lu", what, address, user ? 3 : 1, r.t.vector);
    check(r.cr2 == address, "%s at %x in ring %d: cr2 is %lx", what, address, user ? 3 : 1, r.cr2);
    check(!(r.t.error & PTE_U) == !user, "%s at %x in ring %d: error code %lx", what, address, user ? 3 : 1, r.t.error);
}

static void out_of_reach(void)
{
    uint8_t *code = paging ? user_page() : 0, *stack = paging ? user_page() : 0;
    const struct { const uint8_t *code; const char *what; } ways[] = {
        { load, "a read" }, { store, "a write" }, { jump, "a jump" }, { locked, "a locked increment" }, { string, "REP STOSB" },
    };
    for (uint32_t user = 0; user <= (paging ? 1 : 0); user++)
        for (uint32_t w = 0; w < array_size(ways); w++)
            for (uint32_t p = 0; p < array_size(places); p++)
                one(ways[w].code, ways[w].what, places[p], user ? code : 0, stack);
    (void)push_there;
    hypercall0(FLUSH_ASYNC);                            /* it is still in order */
}

/* Over the border: from the last page below, which is mapped, into it. */
static void border(void)
{
    map_page(0xFFBFF000, pa(alloc_page()), PTE_W);
    struct run r = ring1(store);
    r.t.ax = 0xFFBFFFFE;
    run_to_trap(&r, 14, PTE_W, "a write over the border");
    check(r.cr2 == 0xFFC00000, "a write over the border: cr2 is %lx", r.cr2);
    r = ring1(load);
    r.t.ax = 0xFFBFFFFC;
    run_to_trap(&r, END, 0, "a read up to the border");
    unmap_page(0xFFBFF000);
}

/* The Guest's tables may say what they like about those addresses. */
static void mapped_over(void)
{
    reg_t *directory = &page_root[0xFFC00000 >> 22], *table = alloc_page();
    uint32_t *frame = alloc_page();
    frame[0] = 0x5A5A5A5A;
    for (uint32_t i = 0; i < 1024; i++)
        table[i] = pa(frame) | PTE_P | PTE_W | PTE_U;
    *directory = pa(table) | PTE_P | PTE_W | PTE_U;
    hypercall1(FLUSH_TLB, 1);
    one(load, "a read, with a table of the Guest's there", 0xFFC00000, 0, 0);
    one(store, "a write, with a table of the Guest's there", 0xFFC02000, 0, 0);
    check(frame[0] == 0x5A5A5A5A, "the Guest's frame was written");
    *directory = 0;
    hypercall1(FLUSH_TLB, 1);
}

static void who_is_there(void)
{
    struct cpuid top = cpuid(0x40000000, 0);
    char name[13] = "";
    memcpy(name, &top.ebx, 12);
    check(!memcmp(name, "smpguestsmpg", 12), "CPUID 0x40000000 says %s", name);
    check(top.eax >= 0x40000001, "the largest leaf is %x", top.eax);
    struct cpuid leaf = cpuid(0x40000001, 0);
    check(leaf.eax == 1, "the SMP extension has the version %u", leaf.eax);
    check(leaf.ebx >= ncpus && leaf.ebx <= 32, "%u vCPUs, they say", leaf.ebx);
    check(leaf.ecx == 0 && leaf.edx == 0, "ecx %x, edx %x on CPU 0", leaf.ecx, leaf.edx);
    struct cpuid basic = cpuid(1, 0);
    check(basic.edx >> 24 & 1, "no FXSR: Linux needs it");
    check(basic.edx & 1 && basic.edx >> 4 & 1 && basic.edx >> 8 & 1, "no FPU, TSC or CMPXCHG8B: edx %x", basic.edx);
}

const struct subject switcher_subjects[] = {
    { "switcher", out_of_reach, ANY }, { "switcher-border", border, PAGED }, { "switcher-mapped", mapped_over, PAGED },
    { "cpuid", who_is_there, ANY }, { 0, 0, 0 },
};
