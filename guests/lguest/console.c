/* The virtio console: what is printed there and by NOTIFY goes to the same place; only=console-echo sends back what is
   typed, in capitals, until a line says "end". */
#include "abi.h"

enum { INPUT = 0, OUTPUT = 1 };
static struct device console;

static void open_console(void)
{
    check(find_device(DEVICE_CONSOLE, 0, &console), "no console");
    check(console.queues == 2 && console.feature_bytes == 0 && console.config_bytes == 0, "the console has %u queues, %u bytes of features, %u of configuration",
          console.queues, console.feature_bytes, console.config_bytes);
    check(console.desc[5 + 16] == 0, "the console is not the last device");
    start_device(&console, 0);
}

static void put(const char *text, uint32_t n)
{
    struct piece piece = { text, n, false };
    vring_offer(&console.queue[OUTPUT], &piece, 1);
    vring_notify(&console.queue[OUTPUT]);
    vring_wait(&console.queue[OUTPUT], "the console to take a text");
}

static void output(void)
{
    open_console();
    put("console: this line came by its queue\n", 37);
    static char line[64];
    for (uint32_t i = 0; i < 300; i++) {
        int n = snprintf(line, sizeof line, "console: line %u of 300\n", i);
        put(line, (uint32_t)n);
    }
    static const char first[] = "console: in ", second[] = "two ", third[] = "three pieces\n";
    struct piece pieces[] = { { first, 12, false }, { second, 4, false }, { third, 13, false } };
    vring_offer(&console.queue[OUTPUT], pieces, 3);
    vring_notify(&console.queue[OUTPUT]);
    vring_wait(&console.queue[OUTPUT], "the console to take three pieces");
    reset_device(&console);
}

static void echo(void)
{
    static char in[128], line[200];
    uint32_t length = 0;
    open_console();
    put("console: ready\n", 15);
    for (;;) {
        struct piece piece = { in, sizeof in, true };
        vring_offer(&console.queue[INPUT], &piece, 1);
        vring_notify(&console.queue[INPUT]);
        uint32_t n = vring_wait(&console.queue[INPUT], "somebody to type");
        check(n > 0 && n <= sizeof in, "%u bytes of input", n);
        for (uint32_t i = 0; i < n; i++) {
            char c = in[i];
            line[length++] = c >= 'a' && c <= 'z' ? (char)(c - 32) : c;
            if (c != '\n' && length < sizeof line)
                continue;
            put(line, length);
            if (length == 4 && !memcmp(line, "END\n", 4))
                return;
            length = 0;
        }
    }
}

/* A driver that gives up, and one that comes after it. */
static void failed(void)
{
    for (int i = 0; i < 3; i++) {
        open_console();
        put("console: it works\n", 18);
        *(volatile uint8_t *)(console.desc + 4) |= STATUS_FAILED;
        hypercall1(NOTIFY, console.physical);
    }
    *(volatile uint8_t *)(console.desc + 4) = STATUS_FAILED;    /* also when it does not run */
    hypercall1(NOTIFY, console.physical);
    reset_device(&console);
}

const struct subject console_subjects[] = {
    { "console-failed", failed, PAGED | ONLY_BY_NAME },
    { "console", output, PAGED | ONLY_BY_NAME }, { "console-linear", output, LINEAR | ONLY_BY_NAME },
    { "console-echo", echo, PAGED | ONLY_BY_NAME }, { 0, 0, 0 },
};
