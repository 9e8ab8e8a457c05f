/* traps: every exception, int n, ring 3, I/O permission, SYSCALL and SYSENTER, NMI, double and triple fault: each with the
   vector, error code, saved ip and flags that the SDM (vol. 3, chapter 6) asks for, on all CPUs at the same time.
   Options: "df": stop after the double faults; "triple": end with a triple fault instead of a verdict; only=df|int|table|control|debug|io|calls|
   interrupts|nmi, scale=N. */
#include "guest.h"

const char guest_name[] = "traps";

#ifdef __x86_64__
#define R "r"
#define Q "q"
#define ONLY32(x)
#define ONLY64(x) x
#else
#define R "e"
#define Q "l"
#define ONLY32(x) x
#define ONLY64(x)
#endif

enum { DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11, SS = 12, GP = 13, PF = 14, MF = 16, AC = 17, XM = 19 };
enum { FLAG_CF = 1, FLAG_TF = 0x100, FLAG_DF = 0x400, FLAG_OF = 0x800, FLAG_IOPL3 = 0x3000, FLAG_NT = 0x4000, FLAG_AC = 0x40000 };
enum { CR0_TS = 8, CR0_AM = 0x40000, CR4_TSD = 4, CR4_OSFXSR = 0x200, CR4_OSXMMEXCPT = 0x400 };
enum { EFER = 0xC0000080u, EFER_SCE = 1 };

/* Of each CPU's free descriptors. In the 32-bit build SEL_FREE itself is the double-fault task. */
enum { SEL_ABSENT3 = SEL_FREE + 0x08, SEL_ABSENT0 = SEL_FREE + 0x10, SEL_SHORT3 = SEL_FREE + 0x18 };
/* Gates: into a data segment, absent, into nothing, a trap gate, and three with handlers of their own. */
enum { V_DATA = 0x90, V_ABSENT = 0x91, V_NULL = 0x92, V_TRAP_GATE = 0x93, V_FRAME = 0x94, V_NEST = 0x95, V_SHADOW = 0x96, V_FRAME2 = 0x97 };

static uint32_t traps_seen[MAX_CPUS];

/* ---- pieces of code; each is run from its label and ends with int $0x80 ---- */

#define PIECES(P)                                                                                                           \
    P(nothing, "nop") P(nops, "nop; nop; nop; nop") P(div0, "div %cl") P(idiv, "idiv %ecx") P(ud2, "ud2") P(int3, "int3")   \
    P(int_3, ".byte 0xCD, 3") P(bad_lock, ".byte 0xF0, 0x01, 0xC0") P(fwait, "fwait") P(fpu, "fnop")                        \
    P(fpu_error, "fldz; fld1; fdiv %st(1), %st; fwait") P(sse, "divps %xmm1, %xmm0") P(movups, "movups %xmm0, %xmm1")                  \
    P(mov_ds, "mov %eax, %ds") P(mov_ss, "mov %eax, %ss; nop; nop") P(mov_es, "mov %eax, %es") P(ltr, "ltr %ax")            \
    P(lret, "push $0; push $0; lret" ONLY64("l")) P(iret_nt, "iret" ONLY64("q")) P(too_long, ".fill 15, 1, 0x66; nop")                  \
    P(iret_data, ONLY64("push $0; push $0;") "pushf; push $0x10; push $0; iret" ONLY64("q"))                                \
    P(int_data, "int $0x90") P(int_absent, "int $0x91") P(int_null, "int $0x92") P(int_trap_gate, "int $0x93")              \
    P(int_frame, "int $0x94") P(int_frame2, "int $0x97") P(int_nest, "int $0x95") P(int_df, "int $8") P(page_fault, "mov %eax, (%" R "di)") P(load, "mov (%" R "di), %eax")                         \
    P(cli, "cli") P(sti, "sti") P(hlt, "hlt") P(in8, "inb %dx, %al") P(in16, "inw %dx, %ax") P(in32, "inl %dx, %eax")       \
    P(out8, "outb %al, %dx") P(out16, "outw %ax, %dx") P(out32, "outl %eax, %dx") P(outs, "outsb") P(ins, "insb")           \
    P(in_imm, "inb $0x80, %al") P(mov_cr0, "mov %cr0, %" R "ax") P(to_cr3, "mov %" R "ax, %cr3") P(mov_dr7, "mov %dr7, %" R "ax") \
    P(clts, "clts") P(invlpg, "invlpg (%" R "di)") P(lgdt, "lgdt (%" R "di)") P(lidt, "lidt (%" R "di)")                    \
    P(lmsw, "lmsw %ax") P(wbinvd, "wbinvd") P(rdmsr, "rdmsr") P(wrmsr, "wrmsr") P(rdtsc, "rdtsc") P(cpuid, "cpuid")         \
    P(popf, "push %" R "ax; popf; pushf; pop %" R "ax") P(syscall, "syscall") P(sysenter, "sysenter") P(sysexit, "sysexit" ONLY64("l")) \
    P(jump, "jmp *%" R "di") P(push, "push %" R "ax") P(stack_load, "mov 8192(%" R "sp), %eax") P(ac_load, "mov 1(%" R "di), %eax") \
    P(bad_stack, "mov %" R "di, %" R "sp; push %" R "ax") P(rep_movs, "rep movsb; nop") P(sti_shadow, "sti; nop; nop; cli") P(sti_cli, "sti; cli; nop")                           \
    ONLY32(P(into, "into") P(bound, "bound %eax, (%edi)"))                                                                  \
    ONLY64(P(swapgs, "swapgs") P(pusha, ".byte 0x60") P(rbp_load, "mov (%rbp), %eax") P(compat, ".byte 0x40"))

#define DECLARE(name, code) extern const uint8_t p_##name[];
#define DEFINE(name, code) "p_" #name ": " code "; int $0x80\n"
extern const uint8_t pieces[], pieces_end[], sysret_stub[], sysexit_stub[], soft_stubs[];
PIECES(DECLARE)
asm(".pushsection .text\n pieces:\n" PIECES(DEFINE) "pieces_end:\n"
    /* Kernel entries of SYSCALL and SYSENTER: they note what they find in registers and go back at once. */
    "sysret_stub: mov %cs, %edi; mov %ss, %esi; pushf; pop %" R "bp; " ONLY64("sysretq") ONLY32("sysretl") "\n"
    "sysexit_stub: mov %cs, %edi; mov %ss, %esi; mov %" R "sp, %" R "bp; pushf; pop %" R "bx; sti; sysexit" ONLY64("q") "\n"
    /* `int n` pushes no error code, whatever n: stubs for the vectors whose usual stub expects one. 16 bytes each. */
    ".balign 16; soft_stubs: .set v, 0; .rept 32; .balign 16; push $0; push $v; jmp trap_common; .set v, v + 1; .endr\n"
    ".popsection");

static uint8_t *user_code, *user_data[MAX_CPUS], *user_stack[MAX_CPUS];

struct test {
    const char *name;
    const uint8_t *code;
    uint8_t rings, vector;                              /* rings: 1 = ring 0, 2 = ring 3, 3 = both */
    uint16_t error;
    uint8_t ip;                                         /* saved ip minus the piece's address */
    reg_t ax, cx, dx, flags;
    enum { MUST, PROBE } probe;                         /* PROBE: some emulators leave this check out; then it just runs on */
};

static struct run prepare(const uint8_t *code, uint32_t ring)
{
    uint32_t me = cpu_index();
    struct run r = { .t = { .flags = 2 | FLAG_IF | FLAG_CF, .di = (reg_t)user_data[me], .si = (reg_t)user_data[me] } };
    r.t.sp = (reg_t)user_stack[me] + 2048;
    r.t.bp = r.t.sp;
    r.t.cs = ring ? (sizeof(reg_t) == 8 ? SEL_UCODE64 : SEL_UCODE32) | 3 : SEL_KCODE;
    r.t.ss = r.t.ds = r.t.es = SEL_UDATA | 3;
    r.t.ip = ring ? (reg_t)user_code + (reg_t)(code - pieces) : (reg_t)code;
    return r;
}

static void expect(struct run *r, const char *name, uint32_t vector, reg_t error, reg_t ip)
{
    check(r->t.vector == vector && (vector == END || r->t.error == error) && r->t.ip == ip,
          "CPU %u: ring %lu %s: vector %lu, error %lx, ip %lx instead of %u, %lx, %lx", cpu_index(), r->t.cs & 3, name, r->t.vector,
          r->t.error, r->t.ip, vector, error, ip);
    traps_seen[cpu_index()]++;
}

static void not_checked(const char *what)
{
    static const char *said[16];                        /* each once, by CPU 0 */
    for (uint32_t i = 0; !cpu_index() && i < array_size(said) && said[i] != what; i++)
        if (!said[i]) {
            said[i] = what;
            printf("traps: not checked on this machine, it does not do it: %s\n", what);
            break;
        }
}

/* Error code that names an IDT entry: SDM vol. 3, 6.13. Some emulators take the entry's offset in long mode (16 bytes each)
   for its index. */
static uint32_t idt_scale = 8;
static uint32_t idt_error(uint32_t vector) { return vector * idt_scale + 2; }

static void probe_idt_error(void)
{
    struct run r = prepare(p_int_absent, 3);            /* its gate is still closed to ring 3 */
    run_code(&r);
    if (r.t.vector == GP && r.t.error == V_ABSENT * 16 + 2) {
        idt_scale = 16;
        not_checked("error codes that name an IDT entry are vector * 8 + 2 in long mode (here: * 16)");
    }
}

static struct run go(const struct test *t, uint32_t ring)
{
    struct run r = prepare(t->code, ring);
    reg_t ip = r.t.ip, sp = r.t.sp;
    r.t.ax = t->ax;
    r.t.cx = t->cx;
    r.t.dx = t->dx;
    r.t.flags |= t->flags;
    reg_t flags = r.t.flags;
    run_code(&r);
    if (t->probe == PROBE && r.t.vector == END && t->vector != END) {
        not_checked(t->name);
        return r;
    }
    expect(&r, t->name, t->vector, t->error, ip + t->ip);
    if (t->vector != END) {
        reg_t keep = FLAG_CF | FLAG_IF | FLAG_DF | FLAG_OF | FLAG_IOPL3 | FLAG_AC;
        check(((r.t.flags ^ flags) & keep) == 0, "CPU %u: %s: saved flags %lx instead of %lx", cpu_index(), t->name, r.t.flags, flags);
    }
    if (ring && t->ip == 0)
        check(r.t.sp == sp && r.t.ss == (SEL_UDATA | 3), "CPU %u: %s: saved ss:sp %lx:%lx", cpu_index(), t->name, r.t.ss, r.t.sp);
    return r;
}

static void table(void *unused)
{
    (void)unused;
    static const struct test tests[] = {
        { "div by 0", p_div0, 3, DE, 0, 0, 5, 0, 0, 0, MUST },
        { "idiv overflow", p_idiv, 3, DE, 0, 0, 0x80000000u, ~0u, ~0u, 0, MUST },
        { "int3", p_int3, 3, BP, 0, 1, 0, 0, 0, 0, MUST },
        { "int $3", p_int_3, 3, BP, 0, 2, 0, 0, 0, 0, MUST },
        { "ud2", p_ud2, 3, UD, 0, 0, 0, 0, 0, 0, MUST },
        { "lock on a register", p_bad_lock, 3, UD, 0, 0, 0, 0, 0, 0, MUST },
#ifdef __x86_64__
        { "pusha in 64-bit mode", p_pusha, 3, UD, 0, 0, 0, 0, 0, 0, MUST },
        { "swapgs in ring 3", p_swapgs, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "iret with NT in long mode", p_iret_nt, 1, GP, 0, 0, 0, 0, 0, FLAG_NT, MUST },
#else
        { "into with OF", p_into, 3, OF, 0, 1, 0, 0, 0, FLAG_OF, MUST },
        { "into without OF", p_into, 3, END, 0, 3, 0, 0, 0, 0, MUST },
        { "bound, out of range", p_bound, 3, BR, 0, 0, 101, 0, 0, 0, MUST },
        { "bound, in range", p_bound, 3, END, 0, 4, 100, 0, 0, 0, MUST },
        { "iret with NT, link to no TSS", p_iret_nt, 1, TS, SEL_KDATA, 0, 0, 0, 0, FLAG_NT, MUST },
#endif
        { "ds = absent segment", p_mov_ds, 1, NP, SEL_ABSENT0, 0, SEL_ABSENT0, 0, 0, 0, MUST },
        { "ds = absent segment", p_mov_ds, 2, NP, SEL_ABSENT3, 0, SEL_ABSENT3 | 3, 0, 0, 0, MUST },
        { "es = absent segment", p_mov_es, 2, NP, SEL_ABSENT3, 0, SEL_ABSENT3 | 3, 0, 0, 0, MUST },
        { "ss = absent segment", p_mov_ss, 1, SS, SEL_ABSENT0, 0, SEL_ABSENT0, 0, 0, 0, MUST },
        { "ss = absent segment", p_mov_ss, 2, SS, SEL_ABSENT3, 0, SEL_ABSENT3 | 3, 0, 0, 0, MUST },
        { "ss = null", p_mov_ss, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "ss of another ring", p_mov_ss, 2, GP, SEL_KDATA, 0, SEL_KDATA, 0, 0, 0, MUST },
        { "ss of another ring", p_mov_ss, 1, GP, SEL_UDATA, 0, SEL_UDATA | 3, 0, 0, 0, MUST },
        { "ds = supervisor's segment", p_mov_ds, 2, GP, SEL_KDATA, 0, SEL_KDATA, 0, 0, 0, MUST },
        { "ds beyond the GDT", p_mov_ds, 3, GP, 0x1000, 0, 0x1003, 0, 0, 0, MUST },
        { "ds in an LDT that is not there", p_mov_ds, 3, GP, 0x0C, 0, 0x0F, 0, 0, 0, MUST },
        { "ds = TSS", p_mov_ds, 3, GP, SEL_TSS, 0, SEL_TSS | 3, 0, 0, 0, MUST },
        { "ds = null is allowed", p_mov_ds, 2, END, 0, 4, 0, 0, 0, 0, MUST },
        { "lret to null", p_lret, 3, GP, 0, 4, 0, 0, 0, 0, MUST },
        { "iret to a data segment", p_iret_data, 3, GP, 0x10, sizeof(reg_t) == 8 ? 9 : 5, 0, 0, 0, 0, MUST },
        { "instruction of 16 bytes", p_too_long, 3, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "gate into a data segment", p_int_data, 3, GP, SEL_KDATA, 0, 0, 0, 0, 0, MUST },
        { "gate into the null segment", p_int_null, 3, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "gate that is open to ring 3", p_int_trap_gate, 3, V_TRAP_GATE, 0, 2, 0, 0, 0, 0, MUST },
        { "cli", p_cli, 2, GP, 0, 0, 0, 0, 0, 0, MUST },     { "sti", p_sti, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "hlt", p_hlt, 2, GP, 0, 0, 0, 0, 0, 0, MUST },     { "hlt, IOPL 3", p_hlt, 2, GP, 0, 0, 0, 0, 0, FLAG_IOPL3, MUST },
        { "cli, IOPL 3", p_cli, 2, END, 0, 3, 0, 0, 0, FLAG_IOPL3, MUST },
        { "sti, IOPL 3", p_sti, 2, END, 0, 3, 0, 0, 0, FLAG_IOPL3, MUST },
        { "mov from cr0", p_mov_cr0, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "mov to cr3", p_to_cr3, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "mov from dr7", p_mov_dr7, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "clts", p_clts, 2, GP, 0, 0, 0, 0, 0, 0, MUST },   { "invlpg", p_invlpg, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "lgdt", p_lgdt, 2, GP, 0, 0, 0, 0, 0, 0, MUST },   { "lidt", p_lidt, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "lmsw", p_lmsw, 2, GP, 0, 0, 0, 0, 0, 0, MUST },   { "ltr", p_ltr, 2, GP, 0, 0, SEL_TSS, 0, 0, 0, MUST },
        { "wbinvd", p_wbinvd, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "rdmsr", p_rdmsr, 2, GP, 0, 0, 0, 0x1B, 0, 0, MUST },
        { "wrmsr", p_wrmsr, 2, GP, 0, 0, 0, 0x1B, 0, 0, MUST },
        { "rdmsr of an MSR that nobody has", p_rdmsr, 1, GP, 0, 0, 0, 0xDEADBEE0u, 0, 0, PROBE },
        { "sysexit in ring 3", p_sysexit, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        { "rdtsc in ring 3", p_rdtsc, 2, END, 0, 4, 0, 0, 0, 0, MUST },
    };
    const struct test absent = { "gate that is absent", p_int_absent, 3, NP, (uint16_t)idt_error(V_ABSENT), 0, 0, 0, 0, 0, MUST };
    go(&absent, 0);
    go(&absent, 3);
    uint32_t *data = (uint32_t *)user_data[cpu_index()];
    data[0] = 10;                                       /* for BOUND */
    data[1] = 100;
    for (uint32_t i = 0; i < array_size(tests); i++)
        for (uint32_t ring = 0; ring <= 3; ring += 3)
            if (tests[i].rings & (ring ? 2 : 1) && !(sizeof(reg_t) == 8 && tests[i].code == p_sysexit && cpuid(0, 0).ebx == 0x68747541))
                go(&tests[i], ring);
}

/* ---- what needs a control register first ---- */

static void with_control_registers(void *unused)
{
    (void)unused;
    reg_t cr0 = read_cr0(), cr4 = read_cr4();
    static const struct test
        nm_fpu = { "fnop, TS or EM set", p_fpu, 3, NM, 0, 0, 0, 0, 0, 0, MUST },
        nm_fwait = { "fwait, TS and MP set", p_fwait, 3, NM, 0, 0, 0, 0, 0, 0, MUST },
        fpu = { "fnop", p_fpu, 3, END, 0, 4, 0, 0, 0, 0, MUST },
        mf = { "x87 division by 0, not masked: #MF", p_fpu_error, 3, MF, 0, 6, 0, 0, 0, 0, MUST },
        no_sse = { "SSE without CR4.OSFXSR", p_movups, 3, UD, 0, 0, 0, 0, 0, 0, MUST },
        sse = { "SSE", p_movups, 3, END, 0, 5, 0, 0, 0, 0, MUST },
        xm = { "SSE division by 0, not masked: #XM", p_sse, 3, XM, 0, 0, 0, 0, 0, 0, PROBE },
        ac = { "misaligned access with CR0.AM and EFLAGS.AC in ring 3: #AC", p_ac_load, 2, AC, 0, 0, 0, 0, 0, FLAG_AC, PROBE },
        ac0 = { "the same in ring 0", p_ac_load, 1, END, 0, 5, 0, 0, 0, FLAG_AC, MUST },
        tsd = { "rdtsc with CR4.TSD", p_rdtsc, 2, GP, 0, 0, 0, 0, 0, 0, MUST },
        tsd0 = { "rdtsc with CR4.TSD in ring 0", p_rdtsc, 1, END, 0, 4, 0, 0, 0, 0, MUST };
    for (uint32_t ring = 0; ring <= 3; ring += 3) {
        write_cr0(cr0 | CR0_TS);
        go(&nm_fpu, ring);
        go(&nm_fwait, ring);
        asm volatile("clts");
        write_cr0((cr0 & ~2ul) | 4);                    /* EM */
        go(&nm_fpu, ring);
        write_cr0(cr0);
        go(&fpu, ring);
        uint16_t unmasked = 0x37B;
        asm volatile("fninit; fldcw %0" : : "m"(unmasked));
        go(&mf, ring);
        asm volatile("fninit");
        if (cpuid(1, 0).edx >> 25 & 1) {
            static const float ones[4] = { 1, 1, 1, 1 };
            uint32_t mxcsr = 0x1D80, normal = 0x1F80;
            write_cr4(cr4 & ~(reg_t)CR4_OSFXSR);
            go(&no_sse, ring);
            write_cr4(cr4 | CR4_OSFXSR | CR4_OSXMMEXCPT);
            go(&sse, ring);
            asm volatile("movups %0, %%xmm0; xorps %%xmm1, %%xmm1; ldmxcsr %1" : : "m"(ones), "m"(mxcsr));
            if (ring)
                go(&xm, ring);
            asm volatile("ldmxcsr %0" : : "m"(normal));
        }
        write_cr0(cr0 | CR0_AM);
        go(ring ? &ac : &ac0, ring);
        write_cr0(cr0);
        write_cr4(cr4 | CR4_TSD);
        go(ring ? &tsd : &tsd0, ring);
        write_cr4(cr4);
    }

    struct run r = prepare(p_cpuid, 3);
    struct cpuid here = cpuid(0, 0);
    run_code(&r);
    expect(&r, "cpuid in ring 3", END, 0, (reg_t)user_code + (reg_t)(p_cpuid - pieces) + 4);
    check(r.t.bx == here.ebx && r.t.ax == here.eax, "cpuid in ring 3 gives eax %lx, ebx %lx", r.t.ax, r.t.bx);

    for (uint32_t iopl = 0; iopl <= FLAG_IOPL3; iopl += FLAG_IOPL3) {  /* POPF: silently keeps IOPL, and IF unless IOPL allows */
        r = prepare(p_popf, 3);
        r.t.flags |= iopl;
        r.t.ax = 2 | (FLAG_IOPL3 - iopl);
        run_code(&r);
        check(r.t.vector == END && (r.t.ax & (FLAG_IF | FLAG_IOPL3)) == (iopl ? iopl : FLAG_IF), "popf in ring 3 with IOPL %u left flags %lx",
              iopl >> 12, r.t.ax);
    }

    /* FXSAVE holds what was there, FXRSTOR brings it back. */
    if (cpuid(1, 0).edx >> 24 & 1) {
        static uint8_t areas[MAX_CPUS][512] __attribute__((aligned(16)));
        uint8_t (*area)[512] = &areas[cpu_index()];
        uint32_t in = 12345 + cpu_index(), out = 0, pattern[4] = { 1, 2, 3, in }, back[4] = { 0 };
        bool has_sse = cpuid(1, 0).edx >> 25 & 1;
        write_cr4(cr4 | CR4_OSFXSR);
        asm volatile("fninit; fildl %0" : : "m"(in));
        if (has_sse)
            asm volatile("movups %0, %%xmm3" : : "m"(pattern));
        asm volatile("fxsave %0; fninit" : "=m"(*area));
        if (has_sse)
            asm volatile("xorps %%xmm3, %%xmm3" : : );
        check((*area)[4] == 0x80 && ((*area)[3] & 0x38) == 0x38, "fxsave: tags %x, status %x", (*area)[4], (*area)[3]);
        asm volatile("fxrstor %1; fistpl %0" : "=m"(out) : "m"(*area));
        if (has_sse)
            asm volatile("movups %%xmm3, %0" : "=m"(back));
        check(out == in && (!has_sse || back[3] == in), "fxrstor: st0 %u, xmm3 %u instead of %u", out, back[3], in);
        write_cr4(cr4);
    }
}

/* ---- segment limits, canonical addresses, single step, hardware breakpoints ---- */

static reg_t read_dr6(void) { reg_t v; asm volatile("mov %%dr6, %0" : "=r"(v)); return v; }
static void set_breakpoint(uint32_t n, reg_t address, reg_t dr7)
{
    if (n)
        asm volatile("mov %0, %%dr1" : : "r"(address));
    else
        asm volatile("mov %0, %%dr0" : : "r"(address));
    asm volatile("mov %0, %%dr6; mov %1, %%dr7" : : "r"(0ul), "r"(dr7 | 0x400));
}

static void debugging(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    static const struct test step = { "single step", p_nops, 3, DB, 0, 1, 0, 0, 0, FLAG_TF, MUST },
        step_rep = { "single step of rep movsb", p_rep_movs, 3, DB, 0, 0, 0, 3, 0, FLAG_TF, MUST },
        step_int = { "single step of int n", p_int_trap_gate, 3, V_TRAP_GATE, 0, 2, 0, 0, 0, FLAG_TF, MUST },
        step_cli = { "single step of a fault", p_ud2, 3, UD, 0, 0, 0, 0, 0, FLAG_TF, MUST };
    for (uint32_t ring = 0; ring <= 3; ring += 3) {
        asm volatile("mov %0, %%dr6" : : "r"(0ul));
        go(&step, ring);
        check(read_dr6() & 0x4000, "CPU %u: single step, but DR6 is %lx", me, read_dr6());
        struct run r = go(&step_rep, ring);
        check(r.t.cx == 2 && r.t.si == (reg_t)user_data[me] + 1, "CPU %u: one step of rep movsb: count %lu, si %lx", me, r.t.cx, r.t.si);
        go(&step_int, ring);
        go(&step_cli, ring);

        r = prepare(p_mov_ss, ring);                    /* no trap between MOV SS and the next instruction */
        r.t.ax = ring ? SEL_UDATA | 3 : SEL_KDATA;
        r.t.flags |= FLAG_TF;
        reg_t ip = r.t.ip;
        run_code(&r);
        if (r.t.vector == DB && r.t.ip == ip + 2)
            not_checked("a single step is held back after mov ss");
        else
            expect(&r, "single step over mov ss", DB, 0, ip + 3);

        r = prepare(p_nops, ring);
        ip = r.t.ip;
        set_breakpoint(0, ip + 2, 1);
        run_code(&r);
        if (r.t.vector == END)
            not_checked("breakpoint on an instruction (DR0)");
        else {
            expect(&r, "breakpoint on an instruction", DB, 0, ip + 2);
            check((read_dr6() & 15) == 1, "CPU %u: breakpoint 0, but DR6 is %lx", me, read_dr6());
            r.t.flags |= 0x10000;                       /* RF: not again */
            run_code(&r);
            expect(&r, "resumed with RF", END, 0, ip + 6);
        }
        r = prepare(p_page_fault, ring);
        ip = r.t.ip;
        set_breakpoint(1, (reg_t)user_data[me], 1 << 2 | 1 << 20 | 3 << 22);
        run_code(&r);
        if (r.t.vector == END)
            not_checked("breakpoint on a write (DR1)");
        else {
            expect(&r, "breakpoint on a write", DB, 0, ip + 2);
            check((read_dr6() & 15) == 2, "CPU %u: breakpoint 1, but DR6 is %lx", me, read_dr6());
            r = prepare(p_load, ring);
            ip = r.t.ip;
            run_code(&r);
            expect(&r, "read at a breakpoint on writes", END, 0, ip + 4);
        }
        set_breakpoint(0, 0, 0);

#ifdef __x86_64__
        static const struct test canonical = { "address that is not canonical", p_load, 3, GP, 0, 0, 0, 0, 0, 0, PROBE };
        r = prepare(canonical.code, ring);
        r.t.di = 0x800000000000ul;
        ip = r.t.ip;
        run_code(&r);
        expect(&r, canonical.name, GP, 0, ip);
        r = prepare(p_rbp_load, ring);
        r.t.bp = 0x800000000000ul;
        ip = r.t.ip;
        run_code(&r);
        if (r.t.vector == GP)
            not_checked("#SS instead of #GP for a stack address that is not canonical");
        else
            expect(&r, "stack address that is not canonical", SS, 0, ip);
        if (ring) {                                     /* 0x40 is INC EAX in compatibility mode, a REX prefix otherwise */
            r = prepare(p_compat, 3);
            ip = r.t.ip;
            r.t.cs = SEL_UCODE32 | 3;
            r.t.ax = 41;
            run_code(&r);
            expect(&r, "32-bit code in ring 3", END, 0, ip + 3);
            check(r.t.ax == 42 && r.t.cs == (SEL_UCODE32 | 3), "32-bit code in ring 3: eax %lu, cs %lx", r.t.ax, r.t.cs);
        }
#else
        if (ring) {
            r = prepare(p_stack_load, 3);               /* within a segment of 64 KB, based where the user's stack is */
            this_cpu()->m.gdt[SEL_SHORT3 / 8] = 0x0040F20000000FFFull | (uint64_t)((reg_t)user_stack[me] & 0xFFFFFF) << 16
                                            | (uint64_t)((reg_t)user_stack[me] >> 24) << 56;
            r.t.ss = SEL_SHORT3 | 3;
            r.t.sp = 2048;
            ip = r.t.ip;
            run_code(&r);
            if (r.t.vector == SS)
                expect(&r, "access beyond the stack segment's limit", SS, 0, ip);
            else
                not_checked("segment limits");
        }
#endif
    }
}

/* ---- I/O permission ---- */

static void allow(uint32_t port, bool yes)
{
    uint8_t *byte = &this_cpu()->m.tss.iomap[port / 8], bit = (uint8_t)(1 << port % 8);
    *byte = yes ? *byte & (uint8_t)~bit : *byte | bit;
}

static void port(const char *name, const uint8_t *code, uint32_t number, reg_t flags, bool may)
{
    struct test t = { name, code, 2, may ? END : GP, 0, 0, 0, 0, number, flags, MUST };
    uint8_t length = code == p_in16 || code == p_out16 ? 2 : code == p_in_imm ? 2 : 1;
    t.ip = may ? length + 2 : 0;
    t.ax = 0x5A5A5A5A;
    go(&t, 3);
}

static void io(void *unused)
{
    (void)unused;
    static const uint8_t *const all[] = { p_in8, p_out8, p_in16, p_out16, p_in32, p_out32, p_ins, p_outs, p_in_imm };
    for (uint32_t i = 0; i < array_size(all); i++) {
        port("port, nothing allowed", all[i], 0x80, 0, false);
        port("port, IOPL 3", all[i], 0x80, FLAG_IOPL3, true);
    }
    allow(0x80, true);
    port("inb, bit clear", p_in8, 0x80, 0, true);
    port("outb, bit clear", p_out8, 0x80, 0, true);
    port("insb, bit clear", p_ins, 0x80, 0, true);
    port("outsb, bit clear", p_outs, 0x80, 0, true);
    port("inb $0x80, bit clear", p_in_imm, 0, 0, true);
    port("inb of the next port", p_in8, 0x81, 0, false);
    port("inw, second bit set", p_in16, 0x80, 0, false);
    port("inw, first bit set", p_in16, 0x7F, 0, false);
    allow(0x81, true);
    port("inw, both bits clear", p_in16, 0x80, 0, true);
    port("outw, both bits clear", p_out16, 0x80, 0, true);
    port("inl, two of four bits", p_in32, 0x80, 0, false);
    allow(0x82, true);
    allow(0x83, true);
    port("inl, all bits clear", p_in32, 0x80, 0, true);
    port("outl, all bits clear", p_out32, 0x80, 0, true);
    allow(0x87, true);
    port("inw over a byte of the bitmap, second bit set", p_in16, 0x87, 0, false);
    allow(0x88, true);
    port("inw over a byte of the bitmap", p_in16, 0x87, 0, true);
    port("inb beyond the bitmap", p_in8, 0x500, 0, false);
    this_cpu()->m.tss.iomap_base = 0xDFFF;
    port("no bitmap at all", p_in8, 0x80, 0, false);
    this_cpu()->m.tss.iomap_base = offsetof(struct tss, iomap);
    for (uint32_t p = 0x80; p <= 0x88; p++)
        allow(p, false);
}

/* ---- SYSCALL, SYSENTER, SWAPGS ---- */

static bool is_amd(void) { return cpuid(0, 0).ebx == 0x68747541; }     /* "Auth" */

static void system_calls(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    struct run r = prepare(p_syscall, 3);
    reg_t ip = r.t.ip;
    bool has_syscall = cpuid(0x80000000u, 0).eax > 0x80000000u && cpuid(0x80000001u, 0).edx >> 11 & 1;
    if (has_syscall && (sizeof(reg_t) == 8 || is_amd())) {
        uint64_t efer = rdmsr(EFER);
        wrmsr(EFER, efer & ~(uint64_t)EFER_SCE);
        run_code(&r);
        expect(&r, "syscall without EFER.SCE", UD, 0, ip);
        wrmsr(EFER, efer | EFER_SCE);
        wrmsr(0xC0000081u, (uint64_t)(SEL_UCODE32 | 3) << 48 | (uint64_t)SEL_KCODE << 32 | (sizeof(reg_t) == 4 ? (reg_t)sysret_stub : 0));
#ifdef __x86_64__
        wrmsr(0xC0000082u, (reg_t)sysret_stub);
        wrmsr(0xC0000084u, FLAG_IF | FLAG_CF);
#endif
        r = prepare(p_syscall, 3);
        ONLY64(reg_t flags = r.t.flags;)
        run_code(&r);
        expect(&r, "syscall and sysret", END, 0, ip + 4);
        check(r.t.di == SEL_KCODE && r.t.si == SEL_KDATA && !(r.t.bp & FLAG_IF), "CPU %u: syscall: cs %lx, ss %lx, flags %lx", me, r.t.di,
              r.t.si, r.t.bp);
        check(r.t.cs == ((sizeof(reg_t) == 8 ? SEL_UCODE64 : SEL_UCODE32) | 3) && r.t.ss == (SEL_UDATA | 3) && r.t.cx == ip + 2 && r.t.flags & FLAG_IF,
              "CPU %u: sysret: cs %lx, ss %lx, cx %lx, flags %lx", me, r.t.cs, r.t.ss, r.t.cx, r.t.flags);
#ifdef __x86_64__
        check((r.t.r11 & 0xFFF) == flags && !(r.t.bp & FLAG_CF) && (r.t.flags & 0xFFF) == flags, "CPU %u: syscall: r11 %lx, flags in the kernel %lx, afterwards %lx",
              me, r.t.r11, r.t.bp, r.t.flags);
#endif
        wrmsr(EFER, efer);
    } else if (!me)
        printf("traps: CPUID has no SYSCALL for this mode\n");

    r = prepare(p_sysenter, 3);
    ip = r.t.ip;
    if (!(cpuid(1, 0).edx >> 11 & 1)) {
        if (!me)
            printf("traps: CPUID has no SYSENTER\n");
    } else if (sizeof(reg_t) == 8 && is_amd()) {
        run_code(&r);
        expect(&r, "sysenter in long mode on an AMD CPU", UD, 0, ip);
    } else {
        reg_t stack = (reg_t)alloc_page() + PAGE_SIZE;
        wrmsr(0x174, 0);
        run_code(&r);
        expect(&r, "sysenter without a code segment", GP, 0, ip);
        wrmsr(0x174, SEL_KCODE);
        wrmsr(0x175, stack);
        wrmsr(0x176, (reg_t)sysexit_stub);
        r = prepare(p_sysenter, 3);
        reg_t sp = r.t.sp;
        r.t.cx = sp;
        r.t.dx = ip + 2;
        run_code(&r);
        expect(&r, "sysenter and sysexit", END, 0, ip + 4);
        check(r.t.di == SEL_KCODE && r.t.si == SEL_KDATA && r.t.bp == stack && !(r.t.bx & FLAG_IF), "CPU %u: sysenter: cs %lx, ss %lx, sp %lx, flags %lx",
              me, r.t.di, r.t.si, r.t.bp, r.t.bx);
        check(r.t.cs == ((sizeof(reg_t) == 8 ? SEL_UCODE64 : SEL_UCODE32) | 3) && r.t.ss == ((sizeof(reg_t) == 8 ? SEL_UDATA2 : SEL_UDATA) | 3) && r.t.sp == sp,
              "CPU %u: sysexit: cs %lx, ss %lx, sp %lx", me, r.t.cs, r.t.ss, r.t.sp);
    }
#ifdef __x86_64__
    uint64_t gs = rdmsr(0xC0000101u), kernel_gs = rdmsr(0xC0000102u);
    reg_t words[2] = { 11 + me, 22 + me }, seen;
    wrmsr(0xC0000101u, (reg_t)&words[0]);
    wrmsr(0xC0000102u, (reg_t)&words[1]);
    asm volatile("swapgs; mov %%gs:0, %0" : "=r"(seen) : "m"(words));
    check(seen == words[1] && rdmsr(0xC0000101u) == (reg_t)&words[1] && rdmsr(0xC0000102u) == (reg_t)&words[0], "CPU %u: swapgs", me);
    asm volatile("swapgs; mov %%gs:0, %0" : "=r"(seen) : "m"(words));
    check(seen == words[0], "CPU %u: swapgs twice", me);
    wrmsr(0xC0000101u, gs);
    wrmsr(0xC0000102u, kernel_gs);
#endif
}

/* ---- stacks and flags of interrupts, nesting, NMI, interrupt shadow ---- */

static struct { reg_t at, flags, ip, sp, ss, saved; uint32_t ds, es; } frames[MAX_CPUS];
static void handle_frame(struct trap *t)
{
    uint32_t me = cpu_index(), ds, es;
    asm volatile("mov %%ds, %0; mov %%es, %1" : "=r"(ds), "=r"(es));
    frames[me].at = (reg_t)t;
    frames[me].flags = read_flags();
    frames[me].ip = t->ip;
    frames[me].saved = t->flags;
    if (t->cs & 3) {
        frames[me].sp = t->sp;
        frames[me].ss = t->ss;
    }
    frames[me].ds = ds;
    frames[me].es = es;
}

static struct { volatile uint32_t depth, deepest, count; volatile reg_t ip; } nest[MAX_CPUS], nmis[MAX_CPUS], shadow[MAX_CPUS];
static void handle_nest(struct trap *t)
{
    (void)t;
    uint32_t me = cpu_index();
    nest[me].count++;
    if (++nest[me].depth > nest[me].deepest)
        nest[me].deepest = nest[me].depth;
    if (nest[me].depth < 6) {
        sti();
        asm volatile("int $0x95" : : : "memory");
        cli();
    }
    nest[me].depth--;
}

static volatile bool nmi_inner_iret;
static void handle_nmi(struct trap *t)
{
    (void)t;
    uint32_t me = cpu_index();
    if (++nmis[me].depth > nmis[me].deepest)
        nmis[me].deepest = nmis[me].depth;
    if (nmis[me].count++ == 0) {
        ipi_nmi(me);
        delay_us(30);
        if (nmi_inner_iret) {
            asm volatile("int $0x94" : : : "memory");   /* its IRET unblocks NMIs */
            delay_us(30);
        }
    }
    nmis[me].depth--;
}

static void handle_shadow(struct trap *t)
{
    shadow[cpu_index()].count++;
    shadow[cpu_index()].ip = t->ip;
    lapic_eoi();
}

static void pending_interrupt(void)
{
    lapic_icr(0, ICR_SELF | ICR_ASSERT | V_SHADOW);
    spin_until(lapic_bit(LAPIC_IRR, V_SHADOW), "a self-IPI to become pending");
}

static void interrupts(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    for (uint32_t gate = 0; gate < 2; gate++) {         /* an interrupt gate clears IF, a trap gate does not */
        struct run r = prepare(gate ? p_int_frame2 : p_int_frame, 3);
        reg_t ip = r.t.ip, sp = r.t.sp, flags = r.t.flags, top = ONLY64(this_cpu()->m.tss.rsp[0]) ONLY32(this_cpu()->m.tss.esp0);
        run_code(&r);
        expect(&r, "interrupt and back to ring 3", END, 0, ip + 4);
        check(frames[me].at + sizeof(struct trap) == top, "CPU %u: the frame ends at %lx, the TSS says %lx", me, frames[me].at + sizeof(struct trap), top);
        check(frames[me].ip == ip + 2 && frames[me].sp == sp && frames[me].ss == (SEL_UDATA | 3) && frames[me].saved == flags,
              "CPU %u: pushed ip %lx, ss:sp %lx:%lx, flags %lx", me, frames[me].ip, frames[me].ss, frames[me].sp, frames[me].saved);
        check((frames[me].flags & (FLAG_IF | FLAG_TF | FLAG_NT)) == (gate ? FLAG_IF : 0), "CPU %u: flags in the handler are %lx", me, frames[me].flags);
        check(r.t.sp == sp && r.t.ds == (SEL_UDATA | 3), "CPU %u: back in ring 3 with sp %lx, ds %lx", me, r.t.sp, r.t.ds);
    }

    for (uint32_t ring = 0; ring <= 3; ring += 3) {
        struct run r = prepare(p_int_nest, ring);
        nest[me].depth = nest[me].deepest = nest[me].count = 0;
        run_code(&r);
        check(r.t.vector == END && nest[me].deepest == 6 && nest[me].count == 6, "CPU %u: nesting: depth %u, %u interrupts", me, nest[me].deepest, nest[me].count);

        cli();                                          /* a pending interrupt comes after the instruction that follows STI */
        shadow[me].count = 0;
        pending_interrupt();
        r = prepare(p_sti_shadow, 0);
        r.t.flags &= ~(reg_t)FLAG_IF;
        reg_t ip = r.t.ip;
        run_code(&r);
        expect(&r, "sti", END, 0, ip + 6);
        check(shadow[me].count == 1 && shadow[me].ip == ip + 2, "CPU %u: after sti %u interrupts, at %lx instead of %lx", me, shadow[me].count,
              shadow[me].ip, ip + 2);
        pending_interrupt();
        r = prepare(p_sti_cli, 0);
        r.t.flags &= ~(reg_t)FLAG_IF;
        run_code(&r);
        check(r.t.vector == END && shadow[me].count == 1, "CPU %u: an interrupt came between sti and cli", me);
        sti();
        spin_until(shadow[me].count == 2, "the interrupt that sti, cli held back");
    }
    traps_seen[me] += 6;
}

static void nmi(void *unused)
{
    (void)unused;
    uint32_t me = cpu_index();
    nmis[me].count = nmis[me].deepest = 0;
    ipi_nmi(me);
    spin_until(nmis[me].count >= 2, "two NMIs");
    delay_us(100);
    check(nmis[me].count == 2 && nmis[me].depth == 0, "CPU %u: %u NMIs instead of 2", me, nmis[me].count);
    check(nmis[me].deepest == (nmi_inner_iret ? 2 : 1), "CPU %u: an NMI %s", me,
          nmi_inner_iret ? "stayed blocked although an IRET was executed in the handler" : "came before the handler of the first had returned");
    traps_seen[me] += 2;
}

/* ---- int n, all 256 ---- */

static void set_gate(uint32_t vector, uint32_t selector, reg_t address, uint32_t type)
{
    uint32_t gate[4] = { (uint32_t)(address & 0xFFFF) | selector << 16, (uint32_t)(address & 0xFFFF0000u) | type << 8, 0, 0 };
    idt_raw(vector, gate);
}

static bool library_vector(uint32_t v) { return v == VECTOR_WAKE || v == VECTOR_TICK || v == VECTOR_SPURIOUS; }

enum phase { RING0, RING3_CLOSED, RING3_OPEN };
static void int_n(void *which)
{
    enum phase phase = (enum phase)(uintptr_t)which;
    uint8_t *code = user_data[cpu_index()] + 64;
    for (uint32_t v = 0; v < 256; v++) {
        code[0] = 0xCD;
        code[1] = (uint8_t)v;
        code[2] = 0xCD;
        code[3] = END;
        cpuid(0, 0);
        struct run r = prepare(pieces, phase == RING0 ? 0 : 3);
        r.t.ip = (reg_t)code;
        reg_t flags = r.t.flags;
        char what[16];
        snprintf(what, sizeof what, "int $0x%x", v);
        run_code(&r);
        if (phase == RING3_CLOSED && v != END)
            expect(&r, what, GP, idt_error(v), (reg_t)code);
        else if (library_vector(v))
            expect(&r, what, END, 0, (reg_t)code + 4);
        else
            expect(&r, what, v, 0, (reg_t)code + 2);
        check((r.t.flags & 0xFD7) == flags, "CPU %u: %s: flags %lx instead of %lx", cpu_index(), what, r.t.flags, flags);
    }
}

static void int_all(void)
{
    for (uint32_t v = 32; v < 256; v++)
        if (!library_vector(v))
            catch(v);
    for (uint32_t v = 0; v < 32; v++)
        catch(v);
    for (uint32_t v = 0; v < 256; v++)
        if (v != END && v != DF)
            idt_gate(v, 0, 0);
    run_on_all(int_n, (void *)RING3_CLOSED);
    for (uint32_t dpl = 0; dpl <= 3; dpl += 3) {
        for (uint32_t v = 0; v < 256; v++)
            if (v < 32)
                set_gate(v, SEL_KCODE, (reg_t)soft_stubs + 16 * v, 0x8E | dpl << 5);
            else if (v != END)
                idt_gate(v, dpl, 0);
        run_on_all(int_n, (void *)(uintptr_t)(dpl ? RING3_OPEN : RING0));
    }
    for (uint32_t v = 0; v < 256; v++) {
        if (v != END)
            idt_gate(v, 0, v == DF && sizeof(reg_t) == 8 ? 1 : 0);
        if (v >= 32 && !library_vector(v) && v != END)
            on_vector(v, 0);
    }
    idt_gate(BP, 3, 0);
    idt_gate(OF, 3, 0);
}

/* ---- double faults ---- */

#define NOWHERE (FREE_VA + PAGE_SIZE)                    /* absent, and the page below it, too */
static reg_t df_frame[MAX_CPUS];

#ifdef __x86_64__
static void handle_df(struct trap *t)
{
    df_frame[cpu_index()] = (reg_t)t;
    leave_code(t);
}
static void setup_df(void *unused) { (void)unused; }
static bool df_on_own_stack(void) { return (df_frame[cpu_index()] ^ (this_cpu()->m.tss.ist[0] - 1)) < PAGE_SIZE; }
#else
/* The double fault gets a task of its own; what was interrupted is in the CPU's own TSS. */
struct tss32 { uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi, es, cs, ss, ds, fs, gs, ldt, trap; };
static struct tss32 df_tss[MAX_CPUS];
void trap_dispatch(struct trap *t);
extern const uint8_t df_task[];
asm(".pushsection .text\n df_task: call df_in_c; add $4, %esp; iret; jmp df_task\n .popsection");

void df_in_c(uint32_t error);
void df_in_c(uint32_t error)
{
    struct tss32 *old = (struct tss32 *)&this_cpu()->m.tss;
    struct trap t = { .ax = old->eax, .cx = old->ecx, .dx = old->edx, .bx = old->ebx, .bp = old->ebp, .si = old->esi, .di = old->edi,
                      .ip = old->eip, .cs = old->cs, .flags = old->eflags, .sp = old->esp, .ss = old->ss, .ds = old->ds, .es = old->es,
                      .vector = DF, .error = error };
    check(read_cr0() & CR0_TS, "CPU %u: a task switch did not set CR0.TS", cpu_index());
    df_frame[cpu_index()] = (reg_t)&t;
    check(df_tss[cpu_index()].link == SEL_TSS, "CPU %u: the link of the double-fault task is %x", cpu_index(), df_tss[cpu_index()].link);
    leave_code(&t);
    old->eip = t.ip;                                    /* IRET switches back to the old task, which goes on at run_back */
    old->ecx = t.cx;
    old->cs = t.cs;
    old->eflags = t.flags;
    old->esp = t.cx;
    old->ss = old->ds = old->es = SEL_KDATA;
    old->fs = SEL_PERCPU;
}

static void setup_df(void *unused)
{
    (void)unused;
    struct cpu *c = this_cpu();
    struct tss32 *t = &df_tss[c->index];
    uint32_t base = (uint32_t)t;
    *t = (struct tss32){ .cr3 = read_cr3(), .eip = (reg_t)df_task, .eflags = 2, .esp = (reg_t)alloc_page() + PAGE_SIZE, .cs = SEL_KCODE,
                         .ss = SEL_KDATA, .ds = SEL_KDATA, .es = SEL_KDATA, .fs = SEL_PERCPU, .trap = sizeof *t << 16 };
    ((struct tss32 *)&c->m.tss)->cr3 = read_cr3();
    c->m.gdt[SEL_FREE / 8] = (sizeof *t - 1) | (uint64_t)(base & 0xFFFFFF) << 16 | 0x89ull << 40 | (uint64_t)(base >> 24) << 56;
}
static bool df_on_own_stack(void) { return (df_frame[cpu_index()] ^ (df_tss[cpu_index()].esp - 1)) < PAGE_SIZE; }
#endif

static void double_fault(const char *what, const uint8_t *code, uint32_t ring, uint32_t offset)
{
    struct run r = prepare(code, ring);
    reg_t ip = r.t.ip;
    r.t.di = NOWHERE;
    df_frame[cpu_index()] = 0;
    run_code(&r);
    asm volatile("clts");                               /* each task switch set CR0.TS */
    expect(&r, what, DF, 0, ip + offset);
    check(df_on_own_stack(), "CPU %u: %s: the double fault came on the stack at %lx", cpu_index(), what, df_frame[cpu_index()]);
    check((r.t.cs & 3) == ring, "CPU %u: %s: cs %lx", cpu_index(), what, r.t.cs);
}

static void bad_stacks(void *unused) { (void)unused; double_fault("#PF on a bad stack", p_bad_stack, 0, sizeof(reg_t) == 8 ? 3 : 2); }
static void absent_pf_gate(void *unused)
{
    (void)unused;
    double_fault("#PF, then #NP", p_page_fault, 0, 0);
    double_fault("#PF, then #NP", p_page_fault, 3, 0);
}
static void absent_gp_gate(void *unused) { (void)unused; double_fault("#GP, then #NP", p_cli, 3, 0); }
static void absent_ud_gate(void *unused)
{
    (void)unused;
    struct run r = prepare(p_ud2, 3);
    reg_t ip = r.t.ip;
    run_code(&r);                                       /* benign, then contributory: one after the other, not a double fault */
    if (r.t.error == idt_error(UD))
        not_checked("EXT in the error code of a fault that happens while an exception is delivered");
    expect(&r, "#UD, then #NP", NP, r.t.error == idt_error(UD) ? r.t.error : idt_error(UD) + 1, ip);
}

#ifndef __x86_64__
static void int_df(void *unused)                        /* the task gate is closed to ring 3, as every other gate */
{
    (void)unused;
    struct run r = prepare(p_int_df, 3);
    reg_t ip = r.t.ip;
    run_code(&r);
    expect(&r, "int $8 in ring 3 to a task gate of DPL 0", GP, idt_error(DF), ip);
}
#endif

static void double_faults(void)
{
    unmap_page(NOWHERE);
    unmap_page(NOWHERE - PAGE_SIZE);
    run_on_all(setup_df, 0);
#ifdef __x86_64__
    on_vector(DF, handle_df);
#else
    set_gate(DF, SEL_FREE, 0, 0x85);
#endif
    run_on_all(bad_stacks, 0);
    set_gate(PF, SEL_KCODE, 0, 0x0E);
    run_on_all(absent_pf_gate, 0);
    idt_gate(PF, 0, 0);
    set_gate(GP, SEL_KCODE, 0, 0x0E);
    run_on_all(absent_gp_gate, 0);
    idt_gate(GP, 0, 0);
    set_gate(UD, SEL_KCODE, 0, 0x0E);
    run_on_all(absent_ud_gate, 0);
    idt_gate(UD, 0, 0);
#ifndef __x86_64__
    run_on_all(int_df, 0);
#endif
}

/* ---- */

static void setup_cpu(void *unused)
{
    (void)unused;
    struct cpu *c = this_cpu();
    c->m.gdt[SEL_ABSENT3 / 8] = 0x00CF72000000FFFFull;
    c->m.gdt[SEL_ABSENT0 / 8] = 0x00CF12000000FFFFull;
#ifndef __x86_64__
    c->m.tss.link = SEL_KDATA;                            /* for IRET with NT: not a TSS */
#endif
    asm volatile("fninit; lldt %w0" : : "r"(0));
}

static void part(const char *word, const char *name, job_t job, void *arg)
{
    if (!option_is("only", word))
        return;
    uint32_t before = traps_seen[0];
    uint64_t start = rdtsc();
    run_on_all(job, arg);
    uint32_t each = traps_seen[0] - before;
    for (uint32_t i = 1; i < ncpus; i++)
        check(traps_seen[i] == traps_seen[0], "%s: CPU %u saw %u traps, CPU 0 %u", name, i, traps_seen[i], traps_seen[0]);
    printf("traps: %-62s %4u a CPU (%u us)\n", name, each, tsc_to_us(rdtsc() - start));
}

void guest_main(void)
{
    for (uint32_t v = 0; v < 20; v++)
        if (v != 2 && v != 9 && v != 15)
            catch(v);
    catch(END);
    user_code = user_page();
    check(pieces_end - pieces < (long)PAGE_SIZE, "the pieces do not fit a page");
    memcpy(user_code, pieces, (size_t)(pieces_end - pieces));
    for (uint32_t i = 0; i < ncpus; i++) {
        user_data[i] = user_page();
        user_stack[i] = user_page();
    }
    run_on_all(setup_cpu, 0);
    probe_idt_error();

    if (option_is("only", "df")) {
        uint32_t before = traps_seen[0];
        double_faults();
        printf("traps: %-62s %4u a CPU\n", sizeof(reg_t) == 8 ? "double faults, on a stack of the IST" : "double faults, in a task of their own",
               traps_seen[0] - before);
    }
    if (option("df"))
        pass("double faults only, %u on each of %u CPU%s", traps_seen[0], ncpus, ncpus == 1 ? "" : "s");
    for (uint32_t round = 0; round < scale; round++) {
        if (option_is("only", "int")) {
            uint32_t before = traps_seen[0];
            int_all();
            printf("traps: %-62s %4u a CPU\n", "int n for all n: ring 0, ring 3 with closed gates and with open ones", traps_seen[0] - before);
        }
        set_gate(V_DATA, SEL_KDATA, (reg_t)soft_stubs, 0xEE);
        set_gate(V_ABSENT, SEL_KCODE, (reg_t)soft_stubs, 0x6E);
        set_gate(V_NULL, 0, (reg_t)soft_stubs, 0xEE);
        catch(V_TRAP_GATE);
        idt_gate(V_TRAP_GATE, 3, 0);
        on_vector(V_FRAME, handle_frame);
        idt_gate(V_FRAME, 3, 0);
        on_vector(V_FRAME2, handle_frame);
        extern const uint8_t trap_stubs[];
        set_gate(V_FRAME2, SEL_KCODE, (reg_t)trap_stubs + 16 * V_FRAME2, 0xEF);
        on_vector(V_NEST, handle_nest);
        idt_gate(V_NEST, 3, 0);
        on_vector(V_SHADOW, handle_shadow);
        on_vector(NMI, handle_nmi);
        idt_gate(BP, 3, 0);
        idt_gate(OF, 3, 0);

        part("table", "faults and traps, by the table, ring 0 and 3", table, 0);
        part("control", "#NM, #MF, #XM, #AC, SSE, TSD, popf, cpuid, fxsave", with_control_registers, 0);
        part("debug", "single step, breakpoints, limits and canonical addresses", debugging, 0);
        part("io", "ports from ring 3: IOPL and the bitmap of the TSS", io, 0);
        part("calls", "syscall, sysenter, swapgs", system_calls, 0);
        part("interrupts", "stacks, flags, nesting, the shadow of sti", interrupts, 0);
        nmi_inner_iret = false;
        part("nmi", "NMI in the handler of an NMI waits for its iret", nmi, 0);
        nmi_inner_iret = true;
        part("nmi", "NMI in the handler of an NMI comes after any iret", nmi, 0);
    }
    if (option("triple")) {
        printf("traps: all well so far; now a triple fault, on purpose\n");
        struct { uint16_t limit; reg_t base; } __attribute__((packed)) nothing = { 0, 0 };
        asm volatile("lidt %0; int3" : : "m"(nothing));
        fail("a triple fault had no effect");
    }
    pass("%u traps on each of %u CPU%s, all as they should be", traps_seen[0], ncpus, ncpus == 1 ? "" : "s");
}
