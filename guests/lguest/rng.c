/* The source of random numbers: only=rng needs --rng. */
#include "abi.h"

static void rng(void)
{
    struct device d;
    static uint8_t data[4096];
    static uint32_t count[256];
    check(find_device(DEVICE_RNG, 0, &d), "no source of random numbers");
    check(d.queues == 1 && d.feature_bytes == 0 && d.config_bytes == 0, "it has %u queues, %u bytes of features", d.queues, d.feature_bytes);
    start_device(&d, 0);
    uint32_t got = 0;
    uint64_t first = 0, word;
    for (uint32_t i = 0; got < 64 * 1024; i++) {
        uint32_t wanted = i % 3 == 0 ? 8 : i % 3 == 1 ? 100 : sizeof data;
        memset(data, 0, sizeof data);
        struct piece piece = { data, wanted, true };
        vring_offer(&d.queue[0], &piece, 1);
        vring_notify(&d.queue[0]);
        uint32_t n = vring_wait(&d.queue[0], "random numbers");
        check(n > 0 && n <= wanted, "wanted %u random bytes, got %u", wanted, n);
        for (uint32_t k = n; k < sizeof data; k++)
            check(!data[k], "byte %u was written, but only %u are used", k, n);
        for (uint32_t k = 0; k < n; k++)
            count[data[k]]++;
        got += n;
        if (n >= 8) {
            memcpy(&word, data, 8);
            check(!i || word != first, "the same 64 bits twice");
            first = i ? first : word;
        }
    }
    for (uint32_t v = 0; v < 256; v++)                  /* 256 expected each; six sigma are about 96 */
        check(count[v] > got / 256 / 2 && count[v] < got / 256 * 2, "byte %x came %u times in %u", v, count[v], got);
    printf("abi: %u random bytes\n", got);
}

const struct subject rng_subjects[] = { { "rng", rng, PAGED | ONLY_BY_NAME }, { 0, 0, 0 } };
