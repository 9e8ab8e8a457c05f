/* The device page: descriptors packed back to back behind the end of memory, and the steps by which a driver starts one.
     type, number of queues, feature bytes, configuration bytes, status: 1 byte each
     for each queue: entries (2), irq (2), page number of the ring (4)
     features offered, features accepted, configuration */
#include "abi.h"

enum { HEADER = 5, QUEUE_CONFIG = 8, STATUS = 4 };

uint8_t *device_page(void) { return va((uint32_t)memory_bytes); }

static struct vring *of_irq[IRQS];

static void handle_queue(struct trap *t)
{
    struct vring *q = of_irq[t->vector - VECTOR_IRQ0];
    if (q)
        q->interrupts++;
    irq_done();
}

static void find_queue(struct vring *q, const uint8_t *config)
{
    uint16_t entries, irq;
    uint32_t page;
    memcpy(&entries, config, 2);
    memcpy(&irq, config + 2, 2);
    memcpy(&page, config + 4, 4);
    memset(q, 0, sizeof *q);
    q->size = entries;
    q->irq = irq;
    q->physical = page * PAGE_SIZE;
    q->desc = va(q->physical);
    q->avail = va(q->physical + 16u * entries);
    q->used = va((q->physical + 16u * entries + 2 * (3 + entries) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1));
}

bool find_device(uint32_t type, uint32_t number, struct device *d)
{
    uint8_t *at = device_page(), *end = at + PAGE_SIZE;
    uint32_t page = (uint32_t)memory_bytes / PAGE_SIZE + 1, irq = 1;
    for (; at < end && at[0]; at += HEADER + QUEUE_CONFIG * at[1] + 2 * at[2] + at[3]) {
        *d = (struct device){ .desc = at, .type = at[0], .queues = at[1], .feature_bytes = at[2], .config_bytes = at[3], .physical = pa(at) };
        check(d->queues >= 1 && d->queues <= 2, "a device of type %u has %u queues", d->type, d->queues);
        for (uint32_t i = 0; i < d->queues; i++) {      /* all in order, from irq 1 and the page behind this one */
            find_queue(&d->queue[i], at + HEADER + QUEUE_CONFIG * i);
            check(d->queue[i].size == 256, "a queue has %u entries", d->queue[i].size);
            check(d->queue[i].irq == irq++, "a queue has irq %u instead of %u", d->queue[i].irq, irq - 1);
            check(d->queue[i].physical == page * PAGE_SIZE, "a queue is at %x instead of %x", d->queue[i].physical, page * PAGE_SIZE);
            page += 3;
        }
        if (d->type == type && number-- == 0)
            return true;
    }
    check(at < end, "the device page has no end");
    return false;
}

uint32_t features_of(const struct device *d)
{
    uint32_t features = 0;
    memcpy(&features, d->desc + HEADER + QUEUE_CONFIG * d->queues, d->feature_bytes < 4 ? d->feature_bytes : 4);
    return features;
}

uint8_t *config_of(const struct device *d) { return d->desc + HEADER + QUEUE_CONFIG * d->queues + 2 * d->feature_bytes; }

static void set_status(struct device *d, uint8_t status, bool tell)
{
    *(volatile uint8_t *)(d->desc + STATUS) = status;
    if (tell)
        hypercall1(NOTIFY, d->physical);
}

void reset_device(struct device *d) { set_status(d, 0, true); }

/* Linux' order: reset and tell; acknowledge, silently; the features, and tell; only then the queues and DRIVER_OK, silently. */
void start_device(struct device *d, uint32_t features)
{
    reset_device(d);
    uint32_t accepted = 0;
    memcpy(&accepted, d->desc + HEADER + QUEUE_CONFIG * d->queues + d->feature_bytes, d->feature_bytes < 4 ? d->feature_bytes : 4);
    check(accepted == 0, "a device of type %u was reset and still has the features %x", d->type, accepted);
    set_status(d, STATUS_ACK, false);
    set_status(d, STATUS_ACK | STATUS_DRIVER, false);
    check((features & ~features_of(d)) == 0, "a device of type %u offers %x, wanted %x", d->type, features_of(d), features);
    memcpy(d->desc + HEADER + QUEUE_CONFIG * d->queues + d->feature_bytes, &features, d->feature_bytes < 4 ? d->feature_bytes : 4);
    set_status(d, STATUS_ACK | STATUS_DRIVER, true);
    for (uint32_t i = 0; i < d->queues; i++) {
        struct vring *q = &d->queue[i];
        q->used_seen = 0;
        check(q->avail->index == 0 && q->used->index == 0, "a queue that was reset stands at %u and %u", q->avail->index, q->used->index);
        for (uint32_t e = 0; e < q->size; e++)
            q->desc[e].next = (uint16_t)(e + 1);
        q->free_head = 0;
        q->interrupts = 0;
        q->avail->flags = q->without_interrupts;
        of_irq[q->irq] = q;
        on_vector(VECTOR_IRQ0 + q->irq, handle_queue);
    }
    set_status(d, STATUS_ACK | STATUS_DRIVER | STATUS_DRIVER_OK, false);
}
