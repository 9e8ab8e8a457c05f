/* The words of the command line. */
#include "guest.h"

char command_line[256];
uint32_t scale = 1;

static const char *find_word(const char *name, bool with_value)
{
    size_t n = strlen(name);
    for (const char *p = command_line; *p; p++)
        if ((p == command_line || p[-1] == ' ') && !memcmp(p, name, n))
            if (with_value ? p[n] == '=' : p[n] == 0 || p[n] == ' ')
                return p + n + (with_value ? 1 : 0);
    return 0;
}

bool option(const char *word) { return find_word(word, false) != 0; }
const char *option_text(const char *name) { return find_word(name, true); }

uint32_t option_number(const char *name, uint32_t otherwise)
{
    const char *p = find_word(name, true);
    if (!p)
        return otherwise;
    uint32_t v = 0, base = 10;
    if (p[0] == '0' && p[1] == 'x') {
        base = 16;
        p += 2;
    }
    for (; *p && *p != ' '; p++) {
        uint32_t d = *p >= '0' && *p <= '9' ? (uint32_t)(*p - '0') : *p >= 'a' && *p <= 'f' ? (uint32_t)(*p - 'a' + 10) : 99;
        check(d < base, "%s= on the command line is not a number", name);
        v = v * base + d;
    }
    return v;
}

bool option_is(const char *name, const char *text)
{
    const char *p = find_word(name, true);
    size_t n = strlen(text);
    return !p || (!memcmp(p, text, n) && (p[n] == 0 || p[n] == ' '));
}
