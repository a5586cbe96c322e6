"""What a boot costs: to the first line that user space prints, on iobus beside QEMU TCG.

Boots of the two alternate. Wall time is from the start of the process (so iobus's has Python's start
and its imports in it) until the line arrives; CPU time is what the process has used by then.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Final

from benchmarks import guests
from benchmarks.report import Row
from iobus.boot.debian import GuestUnavailableError

_NAMES: Final = ("boot to user space, wall", "boot to user space, CPU")
_PEER: Final = "QEMU TCG"
_GOAL: Final = 1.2


def run(quick: bool) -> list[Row]:
    """Measure and return the rows."""
    try:
        with guests.files() as files:
            return _measure(files, runs=1 if quick else 5)
    except GuestUnavailableError as exc:
        return [Row("boot", name, "s", _PEER, goal=_GOAL, note=str(exc)) for name in _NAMES]


def _measure(files: guests.Files, runs: int) -> list[Row]:
    missing = guests.qemu_missing()
    iobus: list[tuple[float, float]] = []
    peer: list[tuple[float, float]] = []
    for _ in range(runs):
        iobus.append(_boot(guests.on_iobus, files))
        if not missing:
            peer.append(_boot(guests.on_qemu, files))
    rows: list[Row] = []
    for index, name in enumerate(_NAMES):
        ours, theirs = tuple(run[index] for run in iobus), tuple(run[index] for run in peer)
        rows.append(
            Row(
                "boot", name, "s", _PEER, median(ours), median(theirs) if theirs else None, _GOAL, missing, ours, theirs
            )
        )
    return rows


def _boot(start: Callable[[guests.Files], guests.Guest], files: guests.Files) -> tuple[float, float]:
    """Boot once; return the seconds of wall time and of CPU time."""
    with start(files) as guest:
        wall = guest.wait_for(guests.UP) - guest.start
        return wall, sum(guest.end())
