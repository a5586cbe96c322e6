"""What a busy userland costs: system calls, and fork and exec, on iobus beside QEMU TCG.

One boot on each side; then the two are told in turn to do their work, and one waits halted while the
other is timed.
"""

from __future__ import annotations

import contextlib
from statistics import median
from typing import Final

from benchmarks import guests
from benchmarks.report import Row
from iobus.boot.debian import GuestUnavailableError

_WORK: Final = {"100,000 system calls": "syscalls 100000", "100 fork+exec": "forks 100"}
_PEER: Final = "QEMU TCG"
_GOAL: Final = 1.5


def run(quick: bool) -> list[Row]:
    """Measure both kinds of work and return the rows."""
    try:
        with guests.files() as files:
            return _measure(files, rounds=1 if quick else 7)
    except GuestUnavailableError as exc:
        return [Row("guest", name, "s", _PEER, goal=_GOAL, note=str(exc)) for name in _WORK]


def _measure(files: guests.Files, rounds: int) -> list[Row]:
    missing = guests.qemu_missing()
    samples: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(guests.on_iobus(files))]
        sides[0].wait_for(guests.UP)
        if not missing:
            sides.append(stack.enter_context(guests.on_qemu(files)))
            sides[1].wait_for(guests.UP)
        for turn in range(rounds + 1):
            for name, line in _WORK.items():
                for side in sides if turn % 2 else sides[::-1]:
                    seconds = side.time(line)
                    if turn:  # the first is to have the programs in the guest's caches, and translated
                        samples.setdefault((name, side.name), []).append(seconds)
    rows: list[Row] = []
    for name in _WORK:
        iobus, peer = samples[name, "iobus"], samples.get((name, "QEMU"), [])
        rows.append(
            Row(
                "guest", name, "s", _PEER, median(iobus), median(peer) if peer else None, _GOAL, missing,
                tuple(iobus), tuple(peer),
            )
        )  # fmt: skip
    return rows
