/* The network card. only=net-ping and only=net-pong are two guests on one cable: ping sends frames with a number, pong sends
   them back with the number's complement. frames=N. */
#include "abi.h"

enum { RECEIVE = 0, TRANSMIT = 1, F_MAC = 1 << 5, HEADER = 10, MAX_FRAME = 1514, BUFFERS = 32, KIND = 0x88B5 };
struct packet { uint8_t header[12], frame[MAX_FRAME + 50]; };   /* header: ten bytes of it, so that the frame can be found at 10 */

static struct device card;
static uint8_t received[BUFFERS][HEADER + MAX_FRAME + 100];
static uint8_t outgoing[HEADER + MAX_FRAME];

/* The device gives them back in any order; here always one at a time, so the order is kept. */
static uint32_t next_buffer;
static void give_buffer(uint32_t i)
{
    struct piece piece = { received[i], sizeof received[i], true };
    vring_offer(&card.queue[RECEIVE], &piece, 1);
}

static void open_card(void)
{
    check(find_device(DEVICE_NET, 0, &card), "no network card");
    check(card.queues == 2 && card.feature_bytes == 4 && card.config_bytes >= 6, "the card has %u queues, %u bytes of features, %u of configuration",
          card.queues, card.feature_bytes, card.config_bytes);
    start_device(&card, features_of(&card) & F_MAC);
    uint8_t *mac = config_of(&card);
    if (features_of(&card) & F_MAC)
        printf("abi: MAC %02x:%02x:%02x:%02x:%02x:%02x\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    for (uint32_t i = 0; i < BUFFERS; i++)
        give_buffer(i);
    vring_notify(&card.queue[RECEIVE]);
}

static void send(uint32_t number, uint32_t length)
{
    memset(outgoing, 0, HEADER);
    uint8_t *frame = outgoing + HEADER;
    memset(frame, 0xFF, 6);
    memcpy(frame + 6, config_of(&card), 6);
    frame[12] = KIND >> 8;
    frame[13] = KIND & 0xFF;
    memcpy(frame + 14, &number, 4);
    for (uint32_t i = 18; i < length; i++)
        frame[i] = (uint8_t)(number + i);
    struct piece pieces[] = { { outgoing, HEADER, false }, { frame, length, false } };
    vring_offer(&card.queue[TRANSMIT], pieces, 2);
    vring_notify(&card.queue[TRANSMIT]);
    vring_wait(&card.queue[TRANSMIT], "the card to send a frame");
}

/* The next frame of our kind; false if none comes in time. */
static bool receive(uint32_t *number, uint32_t *length, uint32_t ms)
{
    struct vring *q = &card.queue[RECEIVE];
    uint64_t end = rdtsc() + us_to_tsc(1000) * ms;
    uint32_t used;
    for (;;) {
        while (!vring_take(q, &used)) {
            if (rdtsc() > end)
                return false;
            timer_start(VECTOR_TICK, 1000000);
            cli();
            if (q->used->index == q->used_seen)
                sti_hlt();
            sti();
        }
        uint8_t *frame = received[next_buffer] + HEADER;
        uint32_t buffer = next_buffer;
        next_buffer = (next_buffer + 1) % BUFFERS;
        bool ours = used >= HEADER + 60 && frame[12] == KIND >> 8 && frame[13] == (KIND & 0xFF);
        if (ours) {
            memcpy(number, frame + 14, 4);
            *length = used - HEADER;
            for (uint32_t i = 18; i < *length; i++)
                check(frame[i] == (uint8_t)(*number + i), "byte %u of frame %x is %x", i, *number, frame[i]);
        }
        give_buffer(buffer);
        vring_notify(q);
        if (ours)
            return true;
    }
}

static uint32_t length_of(uint32_t n) { return n % 5 == 0 ? 60 : n % 5 == 1 ? MAX_FRAME : 60 + n * 37 % (MAX_FRAME - 60); }

static void ping(void)
{
    uint32_t frames = option_number("frames", 200), number, length, lost = 0, answered = 0;
    open_card();
    uint64_t start = rdtsc();
    for (uint32_t n = 1; n <= frames; n++) {
        send(n, length_of(n));
        for (uint32_t tries = 0;;) {                    /* the cable may lose what was sent before the other end was there */
            if (receive(&number, &length, 500)) {
                if (number != ~n)
                    continue;                           /* an answer to one that we have sent again meanwhile */
                break;
            }
            lost++;
            check(++tries < 60, "no answer to frame %u", n);
            send(n, length_of(n));
        }
        check(length == length_of(n), "frame %u came back with %u bytes instead of %u", n, length, length_of(n));
        answered++;
    }
    for (uint32_t i = 0; i < 20; i++)
        send(0, 60);                                    /* the end, for pong */
    check(lost < 60, "%u frames without an answer", lost);
    printf("abi: %u frames there and back, %u us each, %u sent again\n", answered, tsc_to_us(rdtsc() - start) / frames, lost);
}

static void pong(void)
{
    uint32_t number, length, frames = 0;
    open_card();
    for (;;) {
        check(receive(&number, &length, 60000), "nobody pinged");
        if (!number)
            break;
        send(~number, length);
        frames++;
    }
    printf("abi: %u frames answered\n", frames);
}

const struct subject net_subjects[] = { { "net-ping", ping, PAGED | ONLY_BY_NAME }, { "net-pong", pong, PAGED | ONLY_BY_NAME }, { 0, 0, 0 } };
