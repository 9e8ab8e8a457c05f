/* The TSC as the clock: how fast it runs, short delays, and 64-bit arithmetic without libgcc. */
#include "guest.h"

uint32_t tsc_khz;
const char *tsc_source;

uint64_t div64(uint64_t n, uint32_t d)
{
#ifdef __x86_64__
    return n / d;
#else
    uint32_t high = (uint32_t)(n >> 32), low = (uint32_t)n, q_high = high / d, rest = high % d, q_low;
    asm("divl %3" : "=a"(q_low), "+d"(rest) : "0"(low), "r"(d) : "cc");
    return (uint64_t)q_high << 32 | q_low;
#endif
}

uint64_t mul_div(uint64_t a, uint32_t b, uint32_t c) { return div64(a * b, c); }

uint64_t us_to_tsc(uint32_t us) { return div64((uint64_t)us * tsc_khz, 1000); }

uint32_t tsc_to_us(uint64_t cycles)
{
    uint64_t us = div64(cycles, tsc_khz >= 1000 ? tsc_khz / 1000 : 1);
    return us > 0xFFFFFFFFu ? 0xFFFFFFFFu : (uint32_t)us;
}

void delay_us(uint32_t us)
{
    uint64_t end = rdtsc() + us_to_tsc(us);
    while (rdtsc() < end)
        pause();
}
