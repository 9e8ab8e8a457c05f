/* abi: checks what the lguest machine promises, first without page tables (unless it is linked high), then with its own.
   Options: only=NAME for one subject alone, but=NAME for all but one. Those that kill the guest, or need a device, are done by name only. */
#include "abi.h"

const char guest_name[] = "abi";
const bool starts_linear = true;

static const struct subject *const lists[] = {
    call_subjects, ring_subjects, trap_subjects, emulation_subjects, segment_subjects, interrupt_subjects, clock_subjects,
    switcher_subjects, fault_subjects, user_subjects, smp_subjects, kill_subjects, kill_late_subjects, block_subjects, console_subjects,
    rng_subjects, net_subjects, end_subjects,
};

static void run_subjects(uint32_t stage, uint32_t *done)
{
    for (uint32_t l = 0; l < array_size(lists); l++)
        for (const struct subject *s = lists[l]; s->name; s++) {
            uint32_t when = s->when & (LINEAR | PAGED);
            if (option_text("but") && option_is("but", s->name))
                continue;
            if ((when && when != stage) || !option_is("only", s->name) || (s->when & ONLY_BY_NAME && !option_text("only")))
                continue;
            uint64_t start = rdtsc();
            s->run();
            printf("abi: %-24s %s ok (%u us)\n", s->name, stage == LINEAR ? "linear" : "paged ", tsc_to_us(rdtsc() - start));
            ++*done;
        }
}

static void use_tables(void *unused)
{
    (void)unused;
    hypercall1(NEW_PGTABLE, pa(page_root));
}

void guest_main(void)
{
    uint32_t done = 0;
    catch(END);
    if (!paging) {
        run_subjects(LINEAR, &done);
        setup_paging();
        run_on_all(use_tables, 0);
    }
    run_subjects(PAGED, &done);
    check(done, "nothing is called that");
    pass("%u subjects on %u CPU%s", done, ncpus, ncpus == 1 ? "" : "s");
}

/* ---- what several files use ---- */

struct run ring1(const void *code)
{
    struct run r = { .t = { .ds = SEL_KDATA, .es = SEL_KDATA, .fs = SEL_PERCPU, .cs = SEL_KCODE, .ip = (reg_t)code, .flags = 0x202 } };
    return r;
}

struct run ring3(uint32_t ip, uint32_t sp)
{
    struct run r = { .t = { .ds = SEL_UDATA | 3, .es = SEL_UDATA | 3, .cs = SEL_UCODE32 | 3, .ip = ip, .flags = 0x202, .sp = sp,
                            .ss = SEL_UDATA | 3 } };
    return r;
}

void run_to_trap(struct run *r, uint32_t vector, uint32_t error, const char *what)
{
    catch(vector);
    run_code(r);
    if (vector != END)
        on_vector(vector, 0);
    check(r->t.vector == vector, "%s: vector %lu (error %lx, cr2 %lx, ip %lx) instead of %u", what, r->t.vector, r->t.error, r->cr2, r->t.ip, vector);
    check(r->t.error == error, "%s: error code %lx instead of %x", what, r->t.error, error);
}

uint32_t copy_to_user(uint8_t *page, const uint8_t *from, size_t n)
{
    memcpy(page, from, n);
    return (uint32_t)(uintptr_t)page;
}

bool limit_of(uint32_t selector, uint32_t *limit)
{
    bool ok;
    uint32_t v = 0;
    asm volatile("lsl %2, %1; setz %0" : "=q"(ok), "+r"(v) : "r"(selector) : "cc");
    *limit = v;
    return ok;
}

bool rights_of(uint32_t selector, uint32_t *rights)
{
    bool ok;
    uint32_t v = 0;
    asm volatile("lar %2, %1; setz %0" : "=q"(ok), "+r"(v) : "r"(selector) : "cc");
    *rights = v;
    return ok;
}

void expect_kill(const char *format, ...)
{
    char text[160];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    printf("abi: expecting: %s\n", text);
}

_Noreturn void survived(void) { fail("%s: the guest was not killed", option_text("only")); }
