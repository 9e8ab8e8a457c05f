/* Single instructions as C functions, nothing more. */
#ifndef X86_H
#define X86_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned long reg_t;            /* as wide as a register: 4 bytes in the 32-bit build, 8 in the 64-bit one */
#define BITS ((int)(8 * sizeof(reg_t)))

static inline void outb(uint16_t port, uint8_t v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline uint8_t inb(uint16_t port) { uint8_t v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static inline void pause(void) { asm volatile("pause" : : : "memory"); }
static inline void compiler_barrier(void) { asm volatile("" : : : "memory"); }
static inline void invlpg(const volatile void *p) { asm volatile("invlpg (%0)" : : "r"(p) : "memory"); }
/* A locked operation on the stack: a full fence on every x86 that has no MFENCE, too. */
static inline void full_fence(void)
{
#ifdef __x86_64__
    asm volatile("lock orl $0, (%%rsp)" : : : "memory", "cc");
#else
    asm volatile("lock orl $0, (%%esp)" : : : "memory", "cc");
#endif
}

static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
    return (uint64_t)hi << 32 | lo;
}
static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
    return (uint64_t)hi << 32 | lo;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
struct cpuid { uint32_t eax, ebx, ecx, edx; };
static inline struct cpuid cpuid(uint32_t leaf, uint32_t sub)
{
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(sub) : "memory");
    return r;
}

static inline reg_t read_flags(void) { reg_t v; asm volatile("pushf; pop %0" : "=r"(v) : : "memory"); return v; }
static inline void write_flags(reg_t v) { asm volatile("push %0; popf" : : "r"(v) : "memory", "cc"); }
#define FLAG_IF 0x200

static inline reg_t read_cr0(void) { reg_t v; asm volatile("mov %%cr0, %0" : "=r"(v) : : "memory"); return v; }
static inline reg_t read_cr2(void) { reg_t v; asm volatile("mov %%cr2, %0" : "=r"(v) : : "memory"); return v; }
static inline reg_t read_cr3(void) { reg_t v; asm volatile("mov %%cr3, %0" : "=r"(v) : : "memory"); return v; }
static inline reg_t read_cr4(void) { reg_t v; asm volatile("mov %%cr4, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr0(reg_t v) { asm volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
static inline void write_cr3(reg_t v) { asm volatile("mov %0, %%cr3" : : "r"(v) : "memory"); }
static inline void write_cr4(reg_t v) { asm volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }
#endif
