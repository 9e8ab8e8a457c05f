/* A driver's half of a virtqueue, the legacy split layout. One CPU at a time. */
#include "abi.h"

enum { NEXT = 1, WRITE = 2 };

/* The used ring is the other side's: the loads of its entries come after that of its index. */
static uint16_t used_index(struct vring *q)
{
    uint16_t index = q->used->index;
    compiler_barrier();
    return index;
}

void vring_offer(struct vring *q, const struct piece *pieces, uint32_t n)
{
    uint32_t head = q->free_head, at = head;
    for (uint32_t i = 0; i < n; i++) {
        check(at < q->size, "a queue has no free descriptors left");
        q->desc[at].address = pa(pieces[i].data);
        q->desc[at].address_high = 0;
        q->desc[at].length = pieces[i].length;
        q->desc[at].flags = (uint16_t)((i + 1 < n ? NEXT : 0) | (pieces[i].for_device_to_write ? WRITE : 0));
        if (i + 1 < n)
            at = q->desc[at].next;
    }
    q->free_head = q->desc[at].next;
    q->avail->ring[q->avail->index % q->size] = (uint16_t)head;
    compiler_barrier();                                 /* stores stay in order here: the entry, then the index */
    q->avail->index++;
}

/* A full fence between the index and the look at "do not notify": the device writes that and then looks at the index. */
void vring_notify(struct vring *q)
{
    full_fence();
    if (!(q->used->flags & 1))
        hypercall1(NOTIFY, q->physical);
}

bool vring_take(struct vring *q, uint32_t *length)
{
    if (used_index(q) == q->used_seen)
        return false;
    uint32_t head = q->used->ring[q->used_seen % q->size].id;
    *length = q->used->ring[q->used_seen % q->size].length;
    check(head < q->size, "the device used descriptor %u", head);
    q->used_seen++;
    uint32_t last = head;
    while (q->desc[last].flags & NEXT)
        last = q->desc[last].next;
    q->desc[last].next = q->free_head;
    q->free_head = (uint16_t)head;
    return true;
}

uint32_t vring_wait(struct vring *q, const char *what)
{
    uint32_t length;
    if (q->without_interrupts)
        spin_until(used_index(q) != q->used_seen, what);
    else
        sleep_until(used_index(q) != q->used_seen, what);       /* its interrupt ends the sleep */
    check(vring_take(q, &length), "nothing in the used ring");
    return length;
}
