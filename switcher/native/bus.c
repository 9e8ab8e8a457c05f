/* SPDX-License-Identifier: GPL-2.0-only */
/* The bus as a vCPU sees it: eventfd bindings, I/O ports, memory-mapped devices. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "words.h"
#include <fcntl.h>

#define PORTS 65536u

/* ---- eventfd bindings -------------------------------------------------------- */

static int binding_matches(struct smp_binding *b, uint32_t kind, uint64_t address)
{
    return load(&b->used) && b->kind == kind && __atomic_load_n(&b->address, __ATOMIC_RELAXED) == address;
}

static struct smp_binding *find_binding(struct smp_control *c, uint32_t kind, uint64_t address)
{
    uint32_t i, count = load(&c->bindings_used);

    for (i = 0; i < count && i < SMP_BINDINGS; i++)
        if (binding_matches(&c->bindings[i], kind, address))
            return &c->bindings[i];
    return NULL;
}

/*
 * The look without the lock only spares the common case its cost; what counts
 * is the second one.  The lock is held over the write so that after
 * smp_unbind() has returned nobody writes to that descriptor any more.
 */
int smp_notify(struct smp_control *c, uint32_t kind, uint64_t address)
{
    struct smp_binding *binding;
    uint64_t one = 1;

    if (!find_binding(c, kind, address) || smp_lock(c, SMP_SITE_NOTIFY) < 0)
        return 0;
    binding = find_binding(c, kind, address);
    if (binding) {
        ssize_t written = write(binding->fd, &one, sizeof one);

        (void)written; /* EAGAIN: the counter is full, so its reader is told already */
        binding->count++;
    }
    smp_unlock(c);
    return binding != NULL;
}

static int add_binding(struct smp_control *c, uint32_t kind, uint64_t address, int fd)
{
    uint32_t i;

    if (find_binding(c, kind, address))
        return -EEXIST;
    for (i = 0; i < SMP_BINDINGS; i++)
        if (!c->bindings[i].used)
            break;
    if (i == SMP_BINDINGS)
        return -ENOSPC;
    c->bindings[i].kind = kind;
    c->bindings[i].address = address;
    c->bindings[i].fd = fd;
    c->bindings[i].count = 0;
    store(&c->bindings[i].used, 1);
    if (i >= c->bindings_used)
        store(&c->bindings_used, i + 1); /* only grows: how many slots there are to look at */
    return 0;
}

int smp_bind(struct smp_control *c, uint32_t kind, uint64_t address, int fd)
{
    int flags = fcntl(fd, F_GETFL), error;

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -EBADF;
    error = smp_lock(c, SMP_SITE_NOTIFY);
    if (error < 0)
        return error;
    error = add_binding(c, kind, address, fd);
    smp_unlock(c);
    return error;
}

void smp_unbind(struct smp_control *c, uint32_t kind, uint64_t address)
{
    struct smp_binding *binding;

    if (smp_lock(c, SMP_SITE_NOTIFY) < 0)
        return;
    binding = find_binding(c, kind, address);
    if (binding)
        store(&binding->used, 0);
    smp_unlock(c);
}

/* ---- ports ------------------------------------------------------------------- */

static uint8_t *port_attributes(struct smp_control *c)
{
    return (uint8_t *)c + c->port_offset;
}

static uint8_t *port_shadow(struct smp_control *c)
{
    return (uint8_t *)c + c->shadow_offset;
}

/* A byte each: plain atomic stores, read by vCPUs at any time. */
void smp_set_port(struct smp_control *c, uint32_t port, uint32_t attributes, uint32_t shadow)
{
    if (port >= PORTS)
        return;
    __atomic_store_n(&port_shadow(c)[port], (uint8_t)shadow, __ATOMIC_RELEASE);
    __atomic_store_n(&port_attributes(c)[port], (uint8_t)attributes, __ATOMIC_RELEASE);
}

/* All attributes that any byte of the access has; beyond the last port there is nobody. */
static uint32_t access_attributes(struct smp_control *c, uint32_t port, uint32_t size, uint32_t ignore_if)
{
    uint32_t attributes = 0, i;

    for (i = 0; i < size && port + i < PORTS; i++) {
        uint32_t one = __atomic_load_n(&port_attributes(c)[port + i], __ATOMIC_ACQUIRE);

        if (!(one & ignore_if))
            attributes |= one;
    }
    return attributes;
}

static uint64_t read_shadow(struct smp_control *c, uint32_t port, uint32_t size)
{
    uint64_t value = ones(size);
    uint32_t i;

    for (i = 0; i < size && port + i < PORTS; i++)
        if (port_attributes(c)[port + i] & SMP_PORT_SHADOW) {
            value &= ~(0xffull << (8 * i));
            value |= (uint64_t)__atomic_load_n(&port_shadow(c)[port + i], __ATOMIC_ACQUIRE) << (8 * i);
        }
    return value;
}

/* An access that mixes kinds goes to the Host as a whole, which knows its devices. */
uint64_t smp_pio_read(struct smp_control *c, uint32_t vcpu, uint32_t port, uint32_t size)
{
    struct smp_counters *counters = &smp_vcpu(c, vcpu)->counters;
    uint64_t data = 0;

    port &= PORTS - 1;
    size = size > 8 ? 8 : size;
    if (access_attributes(c, port, size, SMP_PORT_SHADOW) & SMP_PORT_SYNC) {
        counters->pio_sync++;
        smp_ask_host(c, vcpu, SMP_REQ_PIO_READ, port, size, &data);
        return data & ones(size);
    }
    counters->pio_native++;
    return read_shadow(c, port, size);
}

void smp_pio_write(struct smp_control *c, uint32_t vcpu, uint32_t port, uint32_t size, uint64_t data)
{
    struct smp_counters *counters = &smp_vcpu(c, vcpu)->counters;
    uint32_t attributes;

    port &= PORTS - 1;
    size = size > 8 ? 8 : size;
    data &= ones(size);
    if (smp_notify(c, SMP_REQ_PIO_WRITE, port)) {
        counters->notify_eventfd++;
        return;
    }
    attributes = access_attributes(c, port, size, 0);
    if (attributes & SMP_PORT_POSTED) {
        counters->pio_posted++;
        smp_post(c, vcpu, SMP_POST_PIO_WRITE, port, size, data);
    } else if (attributes & SMP_PORT_SYNC) {
        counters->pio_sync++;
        smp_ask_host(c, vcpu, SMP_REQ_PIO_WRITE, port, size, &data);
    } else {
        counters->pio_native++;
    }
}

/* ---- memory-mapped devices --------------------------------------------------- */

static int mmio_is_host(struct smp_control *c, uint64_t address, uint32_t size)
{
    uint32_t i;

    for (i = 0; i < c->mmio_ranges && i < SMP_MMIO_RANGES; i++) {
        struct smp_mmio_range *range = &c->mmio[i];

        /* Written so that nothing can overflow. */
        if (range->size >= size && address >= range->base && address - range->base <= range->size - size)
            return 1;
    }
    return 0;
}

uint64_t smp_mmio_read(struct smp_control *c, uint32_t vcpu, uint64_t address, uint32_t size)
{
    struct smp_counters *counters = &smp_vcpu(c, vcpu)->counters;
    uint64_t data = 0;

    size = size > 8 ? 8 : size;
    if (!mmio_is_host(c, address, size)) {
        counters->mmio_none++;
        return ones(size);
    }
    counters->mmio_host++;
    smp_ask_host(c, vcpu, SMP_REQ_MMIO_READ, address, size, &data);
    return data & ones(size);
}

void smp_mmio_write(struct smp_control *c, uint32_t vcpu, uint64_t address, uint32_t size, uint64_t data)
{
    struct smp_counters *counters = &smp_vcpu(c, vcpu)->counters;

    size = size > 8 ? 8 : size;
    data &= ones(size);
    if (smp_notify(c, SMP_REQ_MMIO_WRITE, address)) {
        counters->notify_eventfd++;
        return;
    }
    if (!mmio_is_host(c, address, size)) {
        counters->mmio_none++;
        return;
    }
    counters->mmio_host++;
    smp_ask_host(c, vcpu, SMP_REQ_MMIO_WRITE, address, size, &data);
}
