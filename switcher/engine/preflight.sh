#!/bin/sh
# What must be there before anything can be set up.  Says in a sentence what is missing.
#   sh switcher/engine/preflight.sh PYTHON CC
python=$1
cc=$2

fail() { echo "smpguest: $1" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 ||
    fail "there is no '$python'; install Python 3.11 or later (Debian: apt install python3 python3-venv) or name one: make PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "'$python' is $("$python" -V 2>&1), but Python 3.11 or later is needed; name another with make PYTHON=..."
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "'$python' cannot make virtual environments; install its venv module (Debian: apt install python3-venv)"
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    fail "this is $(uname -s) on $(uname -m); smpguest runs on Linux on x86-64 only"
command -v "${cc%% *}" >/dev/null 2>&1 ||
    fail "there is no C compiler '$cc'; install one (Debian: apt install gcc) or name one with CC=..."
# shellcheck disable=SC2086  # CC may carry options
echo '#include <pthread.h>
int main(void) { return 0; }' | $cc -x c -o /dev/null - 2>/dev/null ||
    fail "'$cc' cannot build a C program; install the C library's headers (Debian: apt install libc6-dev)"
