"""How two ways of doing the same are timed: in turns, so that what disturbs one disturbs all.

Beside `report.py`, on the ground floor of the benchmarks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns


@dataclass(slots=True)
class Contender:
    """One way of making the same accesses, and the best it did."""

    accesses: int
    access: Callable[[], int]
    """Makes them; returns ns."""
    empty: Callable[[], int]
    """Runs through the same list and does nothing with it; returns ns."""
    before: Callable[[], object] = lambda: None
    best: int = 1 << 62
    best_empty: int = 1 << 62

    @property
    def ns(self) -> float:
        return (self.best - self.best_empty) / self.accesses


def contend(contenders: Sequence[Contender], rounds: int) -> None:
    """Let each have a turn in each round, so that what disturbs one disturbs all."""
    for contender in contenders:  # the first turn builds what is remembered
        contender.access()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for contender in contenders:
                contender.before()
                contender.best = min(contender.best, contender.access())
                contender.best_empty = min(contender.best_empty, contender.empty())
    finally:
        if collecting:
            gc.enable()


def pass_over(items: Sequence[object]) -> int:
    start = perf_counter_ns()
    for _ in items:
        pass
    return perf_counter_ns() - start
