"""The little statistics a noisy machine needs: medians, spreads, ratios from paired rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some values, the smallest and the largest of them, and how many they were."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """None where there is no value: a figure that was not taken is not 0."""
    kept = sorted(values)
    if not kept:
        return None
    return Spread(statistics.median(kept), kept[0], kept[-1], len(kept))


def paired(upper: Mapping[int, float], lower: Mapping[int, float]) -> Spread | None:
    """`upper` / `lower`, divided round by round, and only then summed up.

    What slowed the whole machine down in one round slowed down both, so it cancels; the ratio of
    two medians may compare a good moment of one with a bad moment of the other.
    """
    rounds = [number for number in upper if lower.get(number)]
    return spread(upper[number] / lower[number] for number in rounds)
