"""The loops of guests/bench.c in the stock wheel's engine: `python -m perf.stock ELF LOOP=COUNT …`

A process of its own, because one process can only ever load one libunicorn; perf.contestants
starts it.  Each loop is one position-independent function of the ELF file (the header of bench.c
says how it is called).  It gets an engine with its code, a stack and a buffer, and is run to its
return address.  What is printed looks as if the guest had printed it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perf import functions
from perf.errors import PerfError
from switcher import binding

PREFIX = "bench_"
COUNTED = ("lock", "lock_shared")
"""Loops that leave their count in the first dword of the buffer."""
WARM_UP = 64
"""As in bench.c: this part of the count is run before, so that translation is not in the figure."""

PAGE = 0x1000
BUFFER, BUFFER_SIZE = 0x400000, 4 * PAGE
STACK, STACK_SIZE = 0x500000, 4 * PAGE
RETURN = 0x600000
"""The address at which a run ends; nothing is executed there."""


@dataclass(frozen=True)
class Result:
    """The first dword of the buffer after a run, and the cycles of the run."""

    counted: int
    cycles: int


def load_stock() -> Any:
    """The binding with the library of its own wheel; PerfError if it is any other."""
    spec = find_spec("unicorn")
    if spec is None or spec.origin is None:
        raise PerfError("unicorn is not installed in this Python")
    import unicorn

    wheel = Path(spec.origin).resolve().parent
    maps = Path("/proc/self/maps").read_text().splitlines()
    loaded = {Path(line.split()[-1]) for line in maps if "libunicorn" in line}
    if not loaded or any(wheel not in path.parents for path in loaded):
        raise PerfError("the library loaded is not the stock wheel's; unset LIBUNICORN_PATH")
    return unicorn


class Bare:
    """An engine with nothing but one function in it."""

    def __init__(self, unicorn: Any, function: functions.Function, is_64: bool) -> None:
        self._x86 = unicorn.x86_const
        self._is_64 = is_64
        self._address = function.address
        self._uc = unicorn.Uc(
            unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if is_64 else unicorn.UC_MODE_32
        )
        first = function.address & -PAGE
        end = (function.address + len(function.code) + PAGE - 1) & -PAGE
        for start, size in (
            (first, end - first),
            (BUFFER, BUFFER_SIZE),
            (STACK, STACK_SIZE),
            (RETURN, PAGE),
        ):
            # Readable, writable and executable, as the RAM of a machine has to be.
            self._uc.mem_map(start, size, unicorn.UC_PROT_ALL)
        self._uc.mem_write(function.address, function.code)

    def run(self, count: int, host_tsc: Any) -> Result:
        """Call the function with `count` and the buffer."""
        uc, x86 = self._uc, self._x86
        uc.mem_write(BUFFER, bytes(4))
        if self._is_64:
            stack = [RETURN.to_bytes(8, "little")]
            uc.reg_write(x86.UC_X86_REG_RDI, count)
            uc.reg_write(x86.UC_X86_REG_RSI, BUFFER)
        else:
            stack = [word.to_bytes(4, "little") for word in (RETURN, count, BUFFER)]
        top = STACK + STACK_SIZE - 0x100  # aligned as a call leaves it
        uc.mem_write(top, b"".join(stack))
        uc.reg_write(x86.UC_X86_REG_RSP if self._is_64 else x86.UC_X86_REG_ESP, top)
        began = host_tsc()
        uc.emu_start(self._address, RETURN)
        cycles = host_tsc() - began
        return Result(int.from_bytes(uc.mem_read(BUFFER, 4), "little"), cycles)


def main(arguments: list[str]) -> int:
    """One line per loop."""
    host_tsc = binding.open_native().smp_host_tsc
    try:
        found = functions.read(Path(arguments[0]))
        unicorn = load_stock()
        for wish in arguments[1:]:
            name, _, count_text = wish.partition("=")
            function = found.by_name.get(PREFIX + name)
            if function is None:
                raise PerfError(f"{Path(arguments[0]).name} has no function {PREFIX}{name}")
            count = int(count_text)
            bare = Bare(unicorn, function, found.is_64)
            try:
                bare.run(count // WARM_UP + 1, host_tsc)
                result = bare.run(count, host_tsc)
            except unicorn.UcError as error:
                raise PerfError(f"the stock engine stopped in the loop {name}: {error}") from None
            if name in COUNTED and result.counted != count:
                raise PerfError(f"stock counted {result.counted} of {count} in {name}")
            print(f"bench {name} cpus=1 ops={count} cycles={result.cycles}", flush=True)
    except PerfError as error:
        print(f"perf.stock: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
