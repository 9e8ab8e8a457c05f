/* The way out: text to the 16550, the verdict to the debug-exit port. */
#include "guest.h"

#define COM1 0x3F8
#define LSR (COM1 + 5)
#define LSR_THRE 0x20
#define DEBUG_EXIT 0xF4

static void put_byte(char c)
{
    for (uint32_t i = 0; i < 1000000 && !(inb(LSR) & LSR_THRE); i++)
        pause();                                        /* bounded: a dead UART must not hide the verdict */
    outb(COM1, (uint8_t)c);
}

void put_text(const char *s, size_t n)
{
    while (n--) {
        if (*s == '\n')
            put_byte('\r');
        put_byte(*s++);
    }
}

_Noreturn void leave(uint8_t value)
{
    outb(DEBUG_EXIT, value);
    for (;;)                                            /* no debug-exit port here: at least be quiet */
        stand_still();
}

_Noreturn void end_guest(bool passed, const char *line)
{
    (void)line;
    leave(passed ? 0 : 1);
}
