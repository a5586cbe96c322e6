"""Replay: a recorded trace against a device, without a guest, to the first answer that differs.

Stands above `trace.py`. The device is asked what the guest asked it, in the same order and at the same
guest times; a write is given to it, a read's value compared with the recorded one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from iobus.bus import IobusError, Region
from iobus.clock import SteppedClock
from iobus.machine import Machine
from iobus.trace import Record, Space, touched


class ReplayError(IobusError, ValueError):
    """The trace has nothing that could be replayed, or several things of one name."""


class Wanted:
    """The accesses of one region among a trace's.

    It is told as `NAME@BASE`, or, wherever it is, as `NAME`. With `one`, a `NAME` that has several bases is refused: it
    is several devices, or one that moved, which a trace does not tell.
    """

    def __init__(self, region: str, *, one: bool) -> None:
        self._region = region
        self._name, self._base = region, None
        name, at, base = region.rpartition("@")
        if at:
            with contextlib.suppress(ValueError):
                self._name, self._base = name, int(base, 0)
        self._one = one
        self._found: set[tuple[Space, int]] = set()
        self._others: set[str] = set()

    def takes(self, record: Record) -> bool:
        """Whether `record` is of the region."""
        if record.region == self._region or (record.region == self._name and self._base in (None, record.base)):
            self._found.add((record.space, record.base))
            return True
        if record.region is not None:
            self._others.add(record.region if record.region != self._name else f"{record.region}@{record.base:#x}")
        return False

    @property
    def is_clear(self) -> bool:
        """Whether what it took so far is one region's."""
        return not self._one or len(self._found) < 2

    def check(self) -> None:
        """Raise `ReplayError` where the trace, now read, had no access of the region, or it is not clear whose."""
        if not self._found:
            there = ", ".join(map(repr, sorted(self._others))) or "none at all"
            raise ReplayError(f"the trace has no access of region {self._region!r}; it has accesses of {there}")
        if not self.is_clear:
            bases = [f"{self._region}@{base:#x}" for _, base in sorted(self._found)]
            raise ReplayError(
                f"the trace has {', '.join(bases[:_SHOWN])}{', ...' * (len(bases) > _SHOWN)}: "
                f"several devices, or one that moved; choose {bases[0]!r}, say, or {self._region!r} for all"
            )


_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """A read that the device answers otherwise than it did in the trace."""

    record: Record
    number: int
    """Of the access among the replayed ones, from 1."""
    value: int | None
    """What the device gives now; None where it claims the access no more."""
    device: object

    def __str__(self) -> str:
        record = self.record
        expected = f"{record.value:#0{2 + 2 * record.size}x}"
        now = "nothing: it does not claim the access"
        if self.value is not None:
            now = f"{self.value:#0{2 + 2 * record.size}x}"
        text = (
            f"access {self.number}, {record.time / 1e9:.6f} s: {record.size}-byte read of {record.region} at offset "
            f"{record.offset:#x} gave {expected}, now gives {now}"
        )
        if self.value is not None:
            text += "".join(f"\n  {line}" for line in self._registers())
        return text

    def _registers(self) -> list[str]:
        """The registers and fields that differ, by name."""
        assert self.value is not None
        record, lines = self.record, []
        was = touched(self.device, record.offset, record.size, record.value, False)
        now = touched(self.device, record.offset, record.size, self.value, False)
        for before, after in zip(was, now, strict=True):
            differing = [
                f"{name} {old:#x}, now {new:#x}"
                for (name, old), (_, new) in zip(before.fields, after.fields, strict=True)
                if old != new
            ]
            if differing:
                lines.append(f"{before.name}: {'; '.join(differing)}")
        return lines or [register.name for register in was]


def replay(
    records: Iterable[Record], machine: Machine, region: Region, *, name: str | None = None
) -> Difference | None:
    """Make the accesses of the region `name` (default: `region`'s own) again, and return the first difference.

    `name` is `NAME@BASE`, or `NAME` for all of that name, wherever they are: the right thing for a region that moves.

    The machine has no CPU and a `SteppedClock`, which is advanced to each record's time, so that timers fire
    between the same accesses. Memory that the guest prepared for DMA is not in a trace. Raises `ReplayError` where
    the trace has no access of that region, or, without `name`, the region's own is at several bases; `DeviceError`
    when the device does.
    """
    wanted = Wanted(region.name if name is None else name, one=name is None)
    clock = machine.clock
    if not isinstance(clock, SteppedClock):
        raise ReplayError("a replay needs a machine with a SteppedClock, which stands still between accesses")
    start, count = clock.now(), 0
    difference: Difference | None = None
    for record in records:
        if not wanted.takes(record) or not wanted.is_clear or difference is not None:
            continue  # it is read to its end all the same: whose accesses these were is known then
        count += 1
        if (wait := start + record.time - clock.now()) > 0:
            clock.advance(wait)
        address = region.base + record.offset
        with machine.lock:
            if record.is_write:
                region.bus.write(address, record.size, record.value)
                continue
            value = region.bus.read(address, record.size)
        if value != record.value:
            difference = Difference(record, count, value if isinstance(value, int) else None, region.device)
    wanted.check()
    return difference
