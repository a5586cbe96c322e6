"""What a boot costs: to the first line that user space prints, on 1, 2 and 4 CPUs, on iobus beside QEMU TCG.

Boots of the two alternate. Wall time is from the start of the process (so iobus's has Python's start
and its imports in it) until the line arrives; CPU time is what the process has used by then.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from benchmarks import guests
from benchmarks.report import Row
from iobus.boot.debian import GuestUnavailableError

_CPUS: Final = (1, 2, 4)
_KINDS: Final = ("wall", "CPU")
_PEER: Final = "QEMU TCG"
_GOAL: Final = 1.2


def run(quick: bool) -> list[Row]:
    """Measure and return the rows."""
    try:
        with guests.files() as files:
            return [row for cpus in _CPUS for row in _measure(files, cpus, runs=1 if quick else 5)]
    except GuestUnavailableError as exc:
        return [
            Row("boot", _name(cpus, kind), "s", _PEER, goal=_goal(cpus), note=str(exc))
            for cpus in _CPUS
            for kind in _KINDS
        ]


def _name(cpus: int, kind: str) -> str:
    return f"boot to user space, {kind}" if cpus == 1 else f"boot on {cpus} CPUs, {kind}"


def _goal(cpus: int) -> float | None:
    return _GOAL if cpus == 1 else None


def _measure(files: guests.Files, cpus: int, runs: int) -> list[Row]:
    missing = guests.qemu_missing()
    iobus: list[tuple[float, float]] = []
    peer: list[tuple[float, float]] = []
    for _ in range(runs):
        iobus.append(_boot(guests.on_iobus(files, cpus)))
        if not missing:
            peer.append(_boot(guests.on_qemu(files, cpus=cpus)))
    rows: list[Row] = []
    for index, kind in enumerate(_KINDS):
        ours, theirs = tuple(run[index] for run in iobus), tuple(run[index] for run in peer)
        rows.append(
            Row(
                "boot", _name(cpus, kind), "s", _PEER, median(ours), median(theirs) if theirs else None, _goal(cpus),
                missing, ours, theirs,
            )
        )  # fmt: skip
    return rows


def _boot(guest: guests.Guest) -> tuple[float, float]:
    """Wait for a boot; return the seconds of wall time and of CPU time."""
    with guest:
        wall = guest.wait_for(guests.UP) - guest.start
        return wall, sum(guest.end())
