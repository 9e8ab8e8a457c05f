"""Which cores a vCPU's worker may use."""

from __future__ import annotations

import os

import pytest

from vcpu.worker import take_cores


def dealt(monkeypatch: pytest.MonkeyPatch, cores: set[int], vcpus: int) -> list[set[int]]:
    hands: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, hand: hands.append(set(hand)))
    for index in range(vcpus):
        take_cores(index, vcpus)
    return hands


@pytest.mark.parametrize(
    ("cores", "vcpus"), [({0, 1}, 2), ({1, 3, 5, 7, 9}, 2), (set(range(8)), 3)]
)
def test_hands_are_disjoint_and_use_every_core(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], vcpus: int
) -> None:
    hands = dealt(monkeypatch, cores, vcpus)
    assert len(hands) == vcpus
    assert set.union(*hands) == cores
    assert sum(len(hand) for hand in hands) == len(cores)


@pytest.mark.parametrize(("cores", "vcpus"), [({0, 1}, 1), ({0, 1}, 3), ({4}, 2)])
def test_a_lone_vcpu_or_too_many_are_left_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], vcpus: int
) -> None:
    assert dealt(monkeypatch, cores, vcpus) == []
