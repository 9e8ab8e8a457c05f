/* The block device: only=block needs a disk of at least 64 KB that may be written; only=block-look one with a pattern
   that the test's other half has put there, and puts another one behind it. */
#include "abi.h"

enum { F_SEG_MAX = 1 << 2, F_FLUSH = 1 << 9, T_IN = 0, T_OUT = 1, T_SCSI = 2, T_FLUSH = 4, SECTOR = 512 };
struct request { uint32_t type, priority; uint64_t sector; };

static struct device disk;

static uint32_t transfer(uint32_t type, uint64_t sector, void *data, uint32_t bytes, uint8_t wanted)
{
    static struct request header;
    static volatile uint8_t status;
    struct vring *q = &disk.queue[0];
    header = (struct request){ type, 0, sector };
    status = 0xEE;
    struct piece pieces[4] = { { &header, 16, false } };
    uint32_t n = 1;
    if (bytes > 512) {                                  /* in two pieces, because it may be */
        pieces[n++] = (struct piece){ data, 512, type == T_IN };
        pieces[n++] = (struct piece){ (uint8_t *)data + 512, bytes - 512, type == T_IN };
    } else if (bytes)
        pieces[n++] = (struct piece){ data, bytes, type == T_IN };
    pieces[n++] = (struct piece){ &status, 1, true };
    vring_offer(q, pieces, n);
    vring_notify(q);
    uint32_t used = vring_wait(q, "the disk");
    check(status == wanted, "request of type %u for sector %u: status %u instead of %u", type, (uint32_t)sector, status, wanted);
    return used;
}

static uint64_t sectors(void)
{
    uint64_t n;
    memcpy(&n, config_of(&disk), 8);
    return n;
}

static void open_disk(void)
{
    check(find_device(DEVICE_BLOCK, 0, &disk), "no disk");
    check(disk.queues == 1 && disk.feature_bytes == 2 && disk.config_bytes == 16, "the disk has %u queues, %u bytes of features, %u of configuration",
          disk.queues, disk.feature_bytes, disk.config_bytes);
    uint32_t seg_max;
    memcpy(&seg_max, config_of(&disk) + 12, 4);
    check(seg_max == 254, "seg_max is %u", seg_max);
    check(features_of(&disk) & F_FLUSH && features_of(&disk) & F_SEG_MAX, "the disk offers %x", features_of(&disk));
    start_device(&disk, features_of(&disk) & (F_FLUSH | F_SEG_MAX));
    check(sectors() >= 128, "the disk has only %u sectors", (uint32_t)sectors());
}

static void pattern(uint32_t *words, uint32_t bytes, uint32_t seed)
{
    for (uint32_t i = 0; i < bytes / 4; i++)
        words[i] = random32(&seed);
}

static void whole(void)
{
    static uint32_t out[4096], in[4096];
    open_disk();
    static const struct { uint32_t sector, bytes; } places[] = { { 0, 512 }, { 1, 1024 }, { 3, 512 }, { 17, 4096 }, { 40, 16384 }, { 127, 512 } };
    for (int again = 0; again < 2; again++) {           /* the second time behind a reset, and without interrupts */
        for (uint32_t i = 0; i < array_size(places); i++) {
            pattern(out, places[i].bytes, 1000 + i + 100 * (uint32_t)again);
            uint32_t used = transfer(T_OUT, places[i].sector, out, places[i].bytes, 0);
            check(used == 1, "a write used %u bytes", used);
        }
        transfer(T_FLUSH, 0, 0, 0, 0);
        for (uint32_t i = 0; i < array_size(places); i++) {
            pattern(out, places[i].bytes, 1000 + i + 100 * (uint32_t)again);
            memset(in, 0, sizeof in);
            uint32_t used = transfer(T_IN, places[i].sector, in, places[i].bytes, 0);
            check(used == places[i].bytes + 1, "a read of %u bytes used %u", places[i].bytes, used);
            check(!memcmp(in, out, places[i].bytes), "sector %u reads otherwise than it was written", places[i].sector);
        }
        uint32_t interrupts = disk.queue[0].interrupts;
        check(again ? !interrupts : interrupts, "%u interrupts of the disk with flags %u", interrupts, disk.queue[0].avail->flags);
        disk.queue[0].without_interrupts = true;
        start_device(&disk, features_of(&disk) & F_FLUSH);
    }
    transfer(T_SCSI, 0, out, 512, 2);
    printf("abi: %u sectors\n", (uint32_t)sectors());
}

static void many(void)                                  /* as many as fit, at once, and over the ring's end several times */
{
    enum { AT_ONCE = 64 };
    static struct request headers[AT_ONCE];
    static volatile uint8_t status[AT_ONCE];
    static uint8_t data[AT_ONCE][SECTOR];
    open_disk();
    struct vring *q = &disk.queue[0];
    uint32_t length, n = 0;
    for (uint32_t round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            headers[i] = (struct request){ round & 1 ? T_IN : T_OUT, 0, i };
            status[i] = 0xEE;
            if (!(round & 1))
                memset(data[i], (int)(i + round), SECTOR);
            struct piece pieces[] = { { &headers[i], 16, false }, { data[i], SECTOR, round & 1 }, { &status[i], 1, true } };
            vring_offer(q, pieces, 3);
            if (i % 8 == 0)
                vring_notify(q);
        }
        vring_notify(q);
        for (n = 0; n < AT_ONCE; n++)
            length = vring_wait(q, "a disk with much to do");
        (void)length;
        for (uint32_t i = 0; i < AT_ONCE; i++)
            check(status[i] == 0 && data[i][7] == (uint8_t)(i + (round & ~1u)), "request %u of %u: status %u", i, AT_ONCE, status[i]);
    }
}

/* Byte i of the disk is i * 7 + i / 512: the other half of this test has seen to that. */
static void look(void)
{
    static uint8_t data[SECTOR];
    open_disk();
    for (uint32_t sector = 0; sector < 64; sector++) {
        transfer(T_IN, sector, data, SECTOR, 0);
        for (uint32_t i = 0; i < SECTOR; i++)
            check(data[i] == (uint8_t)((sector * SECTOR + i) * 7 + sector), "byte %u of sector %u is %x", i, sector, data[i]);
    }
    memset(data, 0xA5, sizeof data);
    transfer(T_OUT, 100, data, SECTOR, 0);
    transfer(T_FLUSH, 0, 0, 0, 0);
}

/* Interrupts of the disk go where SET_AFFINITY says. */
static volatile uint32_t on_cpu[MAX_CPUS];
static void handle_where(struct trap *t) { (void)t; on_cpu[cpu_index()]++; disk.queue[0].interrupts++; irq_done(); }

static void affinity(void)
{
    static uint32_t data[128];
    open_disk();
    uint32_t irq = disk.queue[0].irq;
    on_vector(VECTOR_IRQ0 + irq, handle_where);
    for (uint32_t cpu = 0; cpu < ncpus; cpu++) {
        hypercall2(SET_AFFINITY, irq, cpu);
        for (uint32_t i = 0; i < 5; i++)
            transfer(T_IN, i, data, 512, 0);            /* sleep_until looks at the ring itself every second: too slow, so: */
        spin_until(on_cpu[cpu], "the disk's interrupt on the CPU that it was sent to");
    }
    hypercall2(SET_AFFINITY, irq, 0);
}

/* A restart: the first time there is no mark on the disk; then there is. */
static void restart(uint32_t message)
{
    static uint32_t data[128];
    open_disk();
    transfer(T_IN, 0, data, 512, 0);
    if (data[0] == 0x600DB007)
        return;
    data[0] = 0x600DB007;
    transfer(T_OUT, 0, data, 512, 0);
    transfer(T_FLUSH, 0, 0, 0, 0);
    printf("abi: restarting\n");
    hypercall2(SHUTDOWN, message, REASON_RESTART);
    survived();
}
static void restart_plain(void) { restart(pa("Restarting")); }
static void restart_null(void) { restart(0x40000000); }         /* what Linux passes: __pa(NULL) */

const struct subject block_subjects[] = {
    { "block", whole, PAGED | ONLY_BY_NAME }, { "block-linear", whole, LINEAR | ONLY_BY_NAME }, { "block-many", many, PAGED | ONLY_BY_NAME },
    { "block-look", look, PAGED | ONLY_BY_NAME }, { "block-affinity", affinity, PAGED | ONLY_BY_NAME },
    { "restart", restart_plain, PAGED | ONLY_BY_NAME }, { "restart-null", restart_null, PAGED | ONLY_BY_NAME }, { 0, 0, 0 },
};
