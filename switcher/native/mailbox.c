/* SPDX-License-Identifier: GPL-2.0-only */
/* Worker to Host: the eventfd, mailboxes for what needs an answer, the posted ring for the rest. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "words.h"

/* ---- telling the Host -------------------------------------------------------- */

void smp_ring_host(struct smp_control *c)
{
    uint64_t one = 1;
    int saved = errno;

    /* Non-blocking: a full counter says the same already. */
    if (c->host_fd >= 0 && write(c->host_fd, &one, sizeof one) < 0)
        errno = saved;
}

/*
 * Call after publishing (a mailbox, a ready slot).  Only the first of several
 * rings the Host.  Nothing is lost: publish -> exchange(signalled, 1) here pairs
 * with exchange(signalled, 0) -> look in the Host (smp_host_woken, then the
 * mailboxes and the ring).  If our exchange finds 0, we ring.  If it finds 1, it
 * came before the Host's clearing exchange, so what we published before it is
 * visible to the look that follows that exchange; and that clearing does come,
 * because whoever turned 0 into 1 rings - unless it was killed in between, and
 * then its death is noticed by other means and ends the Guest.
 */
static void signal_host(struct smp_control *c)
{
    if (!__atomic_exchange_n(&c->posted_signalled, 1, __ATOMIC_SEQ_CST))
        smp_ring_host(c);
}

void smp_host_woken(struct smp_control *c)
{
    __atomic_exchange_n(&c->posted_signalled, 0, __ATOMIC_SEQ_CST);
}

/* ---- mailboxes --------------------------------------------------------------- */

int smp_ask_host(struct smp_control *c, uint32_t vcpu, uint32_t kind, uint64_t address, uint32_t size,
                 uint64_t *data)
{
    struct smp_vcpu *v = smp_vcpu(c, vcpu);
    struct smp_request *request = &v->request;
    int answered;

    if (!is_dead(c)) {
        request->kind = kind;
        request->address = address;
        request->size = size;
        request->data = *data;
        smp_set_state(c, vcpu, SMP_IN_HOST);
        smp_leave_guest(c, vcpu); /* who stops the world need not wait for the Host too */
        store(&request->mail, SMP_MAIL_ASKED);
        signal_host(c);
        wait_word(c, &request->mail, SMP_MAIL_ASKED);
        answered = load(&request->mail) == SMP_MAIL_ANSWERED;
        *data = request->data;
        store(&request->mail, SMP_MAIL_IDLE);
        smp_set_state(c, vcpu, SMP_RUNNING);
        if (!smp_enter_guest(c, vcpu) && answered)
            return 0;
    }
    *data = ones(size);
    return -1;
}

int smp_asked(struct smp_control *c, uint32_t vcpu)
{
    return load(&smp_vcpu(c, vcpu)->request.mail) == SMP_MAIL_ASKED;
}

/* Only the Host turns ASKED into ANSWERED, only a dead Guest's worker withdraws: hence the exchange. */
void smp_answer(struct smp_control *c, uint32_t vcpu, uint64_t data)
{
    struct smp_request *request = &smp_vcpu(c, vcpu)->request;
    uint32_t asked = SMP_MAIL_ASKED;

    request->data = data;
    if (__atomic_compare_exchange_n(&request->mail, &asked, SMP_MAIL_ANSWERED, 0, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST))
        futex_wake(&request->mail);
}

/* ---- the posted ring --------------------------------------------------------- */

static struct smp_posted *slot(struct smp_control *c, uint32_t ticket)
{
    return (struct smp_posted *)((char *)c + c->posted_offset) + ticket % SMP_POSTED;
}

/* Wait until `ticket` has a slot; -1 when the Guest died.  Out of the Guest meanwhile: the
 * Host may be busy for as long as a terminal is slow. */
static int wait_for_room(struct smp_control *c, uint32_t vcpu, uint32_t ticket)
{
    uint32_t head = load(&c->posted_head);

    if (ticket - head < SMP_POSTED)
        return 0;
    smp_leave_guest(c, vcpu);
    while (ticket - (head = load(&c->posted_head)) >= SMP_POSTED && !is_dead(c)) {
        signal_host(c);
        wait_word(c, &c->posted_head, head);
    }
    return smp_enter_guest(c, vcpu);
}

/*
 * Many producers, one consumer.  The ticket fixes the order: if one vCPU's post
 * happens before another's (by whatever the Guest uses to order them), its
 * ticket is smaller, and the Host takes tickets in order.
 *
 * A producer that is killed between taking a ticket and filling its slot leaves
 * a hole.  To the Host it looks like "not yet"; the Host then kills the Guest
 * for that worker's death, and a dead Guest's holes are skipped.
 */
void smp_post(struct smp_control *c, uint32_t vcpu, uint32_t kind, uint64_t address, uint32_t size, uint64_t data)
{
    uint32_t ticket = __atomic_fetch_add(&c->posted_tail, 1, __ATOMIC_SEQ_CST);
    struct smp_posted *entry = slot(c, ticket);

    if (wait_for_room(c, vcpu, ticket))
        return;
    entry->kind = (uint16_t)kind;
    entry->size = (uint8_t)size;
    entry->vcpu = (uint8_t)vcpu;
    entry->address = address;
    entry->data = data;
    store(&entry->ready, ticket + 1);
    signal_host(c);
}

/*
 * A producer waits for `head` to pass ticket - SMP_POSTED.  It took its ticket
 * (tail += 1), then read head; we write head, fence, read tail: if we do not see
 * its ticket, it sees our head.  So only when tickets beyond the ring are out
 * does anybody need waking.
 */
static void advance(struct smp_control *c, uint32_t head)
{
    store(&c->posted_head, head + 1);
    fence();
    if (load(&c->posted_tail) - head > SMP_POSTED)
        futex_wake(&c->posted_head);
}

int smp_post_take(struct smp_control *c, struct smp_posted *out)
{
    uint32_t head;

    while ((head = c->posted_head) != load(&c->posted_tail)) {
        struct smp_posted *entry = slot(c, head);

        if (load(&entry->ready) == head + 1) {
            *out = *entry;
            advance(c, head);
            return 1;
        }
        if (!is_dead(c))
            return 0;
        advance(c, head);
    }
    return 0;
}
