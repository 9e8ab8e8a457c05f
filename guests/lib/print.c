/* printf, one whole line at a time, and the verdict that ends every guest. */
#include "guest.h"

static struct lock console;
static volatile uint32_t over;                          /* somebody already speaks the last word */

/* ---- formatting: %d %i %u %x %X %p %s %c %% with - 0 width .precision(for %s) l ll z ---- */

/* Where the characters go: to a function if there is one, else to a string of limited size. */
struct out { void (*put)(char c); char *to; size_t size, length; };

static void out_char(struct out *o, char c)
{
    if (o->put)
        o->put(c);
    else if (o->length + 1 < o->size)
        o->to[o->length] = c;
    o->length++;
}

static size_t digits_of(char *end, uint64_t v, uint32_t base, bool capital)
{
    char *p = end;
    do {
        uint64_t q = div64(v, base);
        uint32_t d = (uint32_t)(v - q * base);
        *--p = (char)(d < 10 ? '0' + d : (capital ? 'A' : 'a') + d - 10);
        v = q;
    } while (v);
    return (size_t)(end - p);
}

static void format_out(struct out *o, const char *f, va_list args)
{
    for (; *f; f++) {
        if (*f != '%') {
            out_char(o, *f);
            continue;
        }
        bool left = false, zero = false;
        int width = 0, precision = -1, longs = 0;
        for (f++; *f == '-' || *f == '0'; f++)
            *f == '-' ? (left = true) : (zero = true);
        if (*f == '*') {
            width = va_arg(args, int);
            f++;
        } else
            for (; *f >= '0' && *f <= '9'; f++)
                width = width * 10 + (*f - '0');
        if (*f == '.')
            for (f++, precision = 0; *f >= '0' && *f <= '9'; f++)
                precision = precision * 10 + (*f - '0');
        for (; *f == 'l' || *f == 'z'; f++)
            longs += *f == 'z' ? (sizeof(size_t) == 8 ? 2 : 0) : 1;
        if (longs == 1 && sizeof(long) == 8)
            longs = 2;

        char buffer[24];
        const char *text = buffer;
        size_t length = 0;
        bool negative = false;
        switch (*f) {
        case 'd': case 'i': {
            int64_t v = longs >= 2 ? va_arg(args, long long) : va_arg(args, int);
            negative = v < 0;
            length = digits_of(buffer + sizeof buffer, negative ? -(uint64_t)v : (uint64_t)v, 10, false);
            text = buffer + sizeof buffer - length;
            break;
        }
        case 'u': case 'x': case 'X': {
            uint64_t v = longs >= 2 ? va_arg(args, unsigned long long) : va_arg(args, unsigned);
            length = digits_of(buffer + sizeof buffer, v, *f == 'u' ? 10 : 16, *f == 'X');
            text = buffer + sizeof buffer - length;
            break;
        }
        case 'p':
            length = digits_of(buffer + sizeof buffer, (uintptr_t)va_arg(args, void *), 16, false);
            text = buffer + sizeof buffer - length;
            break;
        case 's':
            text = va_arg(args, const char *);
            length = strlen(text);
            if (precision >= 0 && length > (size_t)precision)
                length = (size_t)precision;
            zero = false;
            break;
        case 'c':
            buffer[0] = (char)va_arg(args, int);
            length = 1;
            zero = false;
            break;
        case 0:
            f--;
            continue;
        default:
            buffer[0] = *f;
            length = 1;
        }
        int fill = width - (int)length - negative;
        if (!left && !zero)
            while (fill-- > 0)
                out_char(o, ' ');
        if (negative)
            out_char(o, '-');
        if (!left && zero)
            while (fill-- > 0)
                out_char(o, '0');
        for (size_t i = 0; i < length; i++)
            out_char(o, text[i]);
        if (left)
            while (fill-- > 0)
                out_char(o, ' ');
    }
}

int vsnprintf(char *to, size_t size, const char *format, va_list args)
{
    struct out o = { .to = to, .size = size };
    format_out(&o, format, args);
    if (size)
        to[o.length < size ? o.length : size - 1] = 0;
    return (int)o.length;
}

int snprintf(char *to, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(to, size, format, args);
    va_end(args);
    return n;
}

/* Lines of several CPUs never mix: each collects its own line and prints it whole, under the lock. A line that is
   longer than that room comes in pieces. */
static void line_char(char c)
{
    struct cpu *cpu = this_cpu();
    cpu->line[cpu->line_length++] = c;
    if (c != '\n' && cpu->line_length < sizeof cpu->line - 1)
        return;
    cpu->line[cpu->line_length] = 0;
    lock(&console);
    put_text(cpu->line, cpu->line_length);
    unlock(&console);
    cpu->line_length = 0;
}

int printf(const char *format, ...)
{
    struct out o = { .put = line_char };
    va_list args;
    va_start(args, format);
    reg_t flags = irq_save();
    format_out(&o, format, args);
    irq_restore(flags);
    va_end(args);
    return (int)o.length;
}

/* The verdict, in pieces as well; by one CPU, which has the console. */
static char verdict[256];
static uint32_t verdict_length;

static void verdict_char(char c)
{
    verdict[verdict_length++] = c;
    if (c == '\n' || verdict_length == sizeof verdict - 1) {
        verdict[verdict_length] = 0;
        put_text(verdict, verdict_length);
        verdict_length = 0;
    }
}

static void verdict_out(const char *format, ...)
{
    struct out o = { .put = verdict_char };
    va_list args;
    va_start(args, format);
    format_out(&o, format, args);
    va_end(args);
}

static _Noreturn void last_word(bool passed, const char *format, va_list args)
{
    cli();
    while (__atomic_exchange_n(&over, 1, __ATOMIC_SEQ_CST))
        for (;;)                                        /* another CPU was first; its end_guest() ends us too */
            stand_still();
    for (uint32_t i = 0; i < 10000000 && !try_lock(&console); i++)
        pause();                                        /* the holder may be the one that is stuck: speak anyway */
    char line[400];                                     /* as much as a machine can take with the end */
    va_list again;
    va_copy(again, args);
    int n = snprintf(line, sizeof line, "%s: %s (", guest_name, passed ? "PASS" : "FAIL");
    vsnprintf(line + n, sizeof line - (size_t)n - 1, format, again);
    va_end(again);
    n = (int)strlen(line);
    line[n] = ')';
    line[n + 1] = 0;
    verdict_out("%s: %s (", guest_name, passed ? "PASS" : "FAIL");
    struct out o = { .put = verdict_char };
    format_out(&o, format, args);
    verdict_out(")\n");
    end_guest(passed, line);
}

_Noreturn void pass(const char *summary, ...)
{
    va_list args;
    va_start(args, summary);
    last_word(true, summary, args);
}

_Noreturn void fail(const char *reason, ...)
{
    va_list args;
    va_start(args, reason);
    last_word(false, reason, args);
}

/* The compiler may call these even in freestanding code. */
void *memset(void *to, int c, size_t n)
{
    void *d = to;
    asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *d = to;
    asm volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    if ((uintptr_t)to <= (uintptr_t)from)
        return memcpy(to, from, n);
    char *d = (char *)to + n - 1;
    const char *s = (const char *)from + n - 1;
    asm volatile("std; rep movsb; cld" : "+D"(d), "+S"(s), "+c"(n) : : "memory", "cc");
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}
