"""The loops of guests/bench.c: what they are called in the tables."""

from __future__ import annotations

TITLES = {
    "reg": "8 register instructions",
    "store": "8 stores",
    "load": "8 loads",
    "call": "call and return",
    "copy": "copy, one dword of a loop",
    "movs": "copy, rep movs of 4 KB",
    "lock": "lock inc, each its own line",
    "lock_shared": "lock inc, all the same line",
    "flags": "push and pop flags",
    "matrix": "memory loads in a matrix product",
}


def title(loop: str) -> str:
    """The guest decides which loops there are; one unknown here goes by its own name."""
    return TITLES.get(loop, loop)
