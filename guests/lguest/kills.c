/* Mistakes, each of which kills the guest with lguest's sentence. One a run: only=kill-NAME. What the Host is to say is
   printed before ("expecting: …"), for who watches both. */
#include "abi.h"

#define SWITCHER 0xFFC00000u

/* ---- before LGUEST_INIT, and LGUEST_INIT itself: nothing may be printed yet, so the test knows these sentences ---- */

static bool wanted(const char *name) { return option_text("only") && option_is("only", name); }

void before_init(void)
{
    setup_memory();                                     /* for the command line; once more later on */
    static struct lguest_data data;
    data.kernel_address = 0xC0000000;
    data.syscall_vec = 0x80;
    uint32_t address = pa(&data);
    if (wanted("kill-before-init"))
        hypercall1(HALT, 0);
    else if (wanted("kill-before-init-smp"))
        hypercall1(SMP_INIT, 1);
    else if (wanted("kill-init-page"))
        address = (uint32_t)memory_bytes + 0x200000;
    else if (wanted("kill-init-wrap"))
        address = 0xFFFFFF00;
    else if (wanted("kill-init-syscall"))
        data.syscall_vec = 0x21;
    else if (wanted("kill-init-kernel"))
        data.kernel_address = SWITCHER;
    else if (wanted("kill-trap-before-init"))
        asm volatile("ud2");
    else
        return;
    hypercall1(LGUEST_INIT, address);
    hypercall0(HALT);                                   /* not reached */
}

/* ---- LGUEST_INIT was done; the SMP extension was not asked for ---- */

void before_smp(void)
{
    if (!smp_version || !option_text("only"))
        return;
    static const struct { const char *name; uint32_t call; } calls[] = {
        { "kill-no-smp-up", CPU_UP }, { "kill-no-smp-down", CPU_DOWN }, { "kill-no-smp-ipi", SEND_IPI }, { "kill-no-smp-affinity", SET_AFFINITY },
    };
    for (uint32_t i = 0; i < array_size(calls); i++)
        if (wanted(calls[i].name)) {
            expect_kill("Bad hypercall %u", calls[i].call);
            hypercall2(calls[i].call, 0, 1);
        }
    if (wanted("kill-smp-version")) {
        expect_kill("SMP extension version 2");
        hypercall1(SMP_INIT, 2);
    }
    if (wanted("kill-smp-version-0")) {
        expect_kill("SMP extension version 0");
        hypercall1(SMP_INIT, 0);
    }
}

static void never(void) { survived(); }                 /* the ones above: who comes here was not killed */

/* ---- numbers ---- */

static void bad_number(uint32_t number)
{
    expect_kill("Bad hypercall %d", (int)number);
    hypercall0(number);
    survived();
}
static void bad_3(void) { bad_number(3); }
static void bad_11(void) { bad_number(11); }
static void bad_12(void) { bad_number(12); }
static void bad_13(void) { bad_number(SET_PMD); }       /* for PAE hosts only */
static void bad_20(void) { bad_number(20); }
static void bad_37(void) { bad_number(37); }
static void bad_minus(void) { bad_number(0xFFFFFFFF); }

static void init_twice(void)
{
    expect_kill("already have lguest_data");
    hypercall1(LGUEST_INIT, pa(my_data()));
    survived();
}

static void in_ring(void)
{
    struct lguest_data *d = my_data();
    expect_kill("Bad hypercall 99");
    d->calls[0][0] = 99;
    d->status[0] = 0;
    hypercall0(FLUSH_ASYNC);
    survived();
}

static void crash(void)
{
    expect_kill("CRASH: all is lost");
    hypercall2(SHUTDOWN, pa("all is lost"), REASON_POWEROFF);
    survived();
}

static void crash_long(void)                            /* 128 bytes are read, the last becomes NUL */
{
    static char text[200];
    memset(text, 'x', sizeof text - 1);
    expect_kill("CRASH: %.127s", text);
    hypercall2(SHUTDOWN, pa(text), REASON_POWEROFF);
    survived();
}

/* ---- addresses ---- */

static uint32_t beyond(void) { return (uint32_t)memory_bytes + 0x200000; }      /* behind all device pages */

static void read_tls(void)
{
    expect_kill("bad read address 0x%x len 24", beyond());
    hypercall2(LOAD_TLS, beyond(), 0);
    survived();
}

static void read_shutdown(void)
{
    expect_kill("bad read address 0xfffffff0 len 128");
    hypercall2(SHUTDOWN, 0xFFFFFFF0, REASON_POWEROFF);
    survived();
}

static void write_stack(void)                           /* a frame for a stack that is not memory */
{
    expect_kill("bad write address 0x%x len 4", beyond() - 4);
    asm volatile("mov %0, %%esp; ud2" : : "r"(beyond()));
    survived();
}

static void linear_read(void)                           /* without tables an address beyond memory is no page fault */
{
    expect_kill("bad page table entry");
    (void)*(volatile uint32_t *)(uintptr_t)beyond();
    survived();
}

/* ---- tables and stacks ---- */

static void stack_segment(void)
{
    expect_kill("bad stack segment %d", 0x68);
    hypercall3(SET_STACK, 0x68, 0x100000, 1);
    survived();
}

static void stack_pages(void)
{
    expect_kill("bad stack pages 3");
    hypercall3(SET_STACK, SEL_KDATA, (uint32_t)(uintptr_t)this_cpu()->stack_top, 3);
    survived();
}

static void stack_page(void)
{
    expect_kill("bad stack page 0xfb000fff");
    hypercall3(SET_STACK, SEL_KDATA, 0xFB001000, 1);
    survived();
}

static void stack_page_2(void)                          /* the second one */
{
    map_page(0xFB001000, pa(alloc_page()), PTE_W);
    expect_kill("bad stack page 0xfb000fff");
    hypercall3(SET_STACK, SEL_KDATA, 0xFB002000, 2);
    survived();
}

static void stack_page_readonly(void)
{
    map_page(0xFB001000, pa(alloc_page()), 0);
    expect_kill("bad stack page 0xfb001fff");
    hypercall3(SET_STACK, SEL_KDATA, 0xFB002000, 1);
    survived();
}

static void stack_gone(void)                            /* reflected to a stack that is not mapped */
{
    expect_kill("Bad address 0xfb000800");
    asm volatile("mov %0, %%esp; ud2" : : "r"(0xFB000800));
    survived();
}

static void idt_type(uint32_t type)
{
    expect_kill("bad IDT type %u", type);
    hypercall3(LOAD_IDT_ENTRY, 50, 0x610000, 0x8000 | type << 8);
    survived();
}
static void idt_task(void) { idt_type(5); }
static void idt_16(void) { idt_type(6); }

static void idt_entry(void)
{
    expect_kill("Setting idt entry 256");
    hypercall3(LOAD_IDT_ENTRY, 256, 0x610000, 0x8E00);
    survived();
}

static void gdt_entries(void)
{
    expect_kill("too many gdt entries 32");
    hypercall3(LOAD_GDT_ENTRY, 32, 0, 0);
    survived();
}

const struct subject kill_subjects[] = {
    { "kill-before-init", never, ONLY_BY_NAME }, { "kill-before-init-smp", never, ONLY_BY_NAME }, { "kill-init-page", never, ONLY_BY_NAME },
    { "kill-init-wrap", never, ONLY_BY_NAME }, { "kill-init-syscall", never, ONLY_BY_NAME }, { "kill-init-kernel", never, ONLY_BY_NAME },
    { "kill-trap-before-init", never, ONLY_BY_NAME }, { "kill-no-smp-up", never, ONLY_BY_NAME }, { "kill-no-smp-down", never, ONLY_BY_NAME },
    { "kill-no-smp-ipi", never, ONLY_BY_NAME }, { "kill-no-smp-affinity", never, ONLY_BY_NAME }, { "kill-smp-version", never, ONLY_BY_NAME },
    { "kill-smp-version-0", never, ONLY_BY_NAME },
    { "kill-3", bad_3, ONLY_BY_NAME }, { "kill-11", bad_11, ONLY_BY_NAME }, { "kill-12", bad_12, ONLY_BY_NAME }, { "kill-13", bad_13, ONLY_BY_NAME },
    { "kill-20", bad_20, ONLY_BY_NAME }, { "kill-37", bad_37, ONLY_BY_NAME }, { "kill-minus", bad_minus, ONLY_BY_NAME },
    { "kill-init-twice", init_twice, ONLY_BY_NAME }, { "kill-in-ring", in_ring, ONLY_BY_NAME }, { "kill-crash", crash, ONLY_BY_NAME },
    { "kill-crash-long", crash_long, ONLY_BY_NAME }, { "kill-read-tls", read_tls, ONLY_BY_NAME }, { "kill-read-shutdown", read_shutdown, ONLY_BY_NAME },
    { "kill-write-stack", write_stack, LINEAR | ONLY_BY_NAME }, { "kill-linear-read", linear_read, LINEAR | ONLY_BY_NAME },
    { "kill-stack-segment", stack_segment, ONLY_BY_NAME }, { "kill-stack-pages", stack_pages, ONLY_BY_NAME },
    { "kill-stack-page", stack_page, PAGED | ONLY_BY_NAME }, { "kill-stack-page-2", stack_page_2, PAGED | ONLY_BY_NAME },
    { "kill-stack-page-readonly", stack_page_readonly, PAGED | ONLY_BY_NAME }, { "kill-stack-gone", stack_gone, PAGED | ONLY_BY_NAME },
    { "kill-idt-task", idt_task, ONLY_BY_NAME }, { "kill-idt-16", idt_16, ONLY_BY_NAME }, { "kill-idt-entry", idt_entry, ONLY_BY_NAME },
    { "kill-gdt-entries", gdt_entries, ONLY_BY_NAME }, { 0, 0, 0 },
};
