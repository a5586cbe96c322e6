"""Replay: a recorded trace against a device, without a guest, to the first answer that differs.

Stands above `trace.py`. The device is asked what the guest asked it, in the same order and at the same
guest times; a write is given to it, a read's value compared with the recorded one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iobus.bus import IobusError, Region
from iobus.clock import SteppedClock
from iobus.machine import Machine
from iobus.trace import Record, touched


class ReplayError(IobusError, ValueError):
    """The trace has nothing that could be replayed."""


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

    The machine has no CPU and a `SteppedClock`, which is advanced to each record's time, so that timers fire
    between the same accesses. Memory that the guest prepared for DMA is not in a trace. Raises `ReplayError` where
    the trace has no access of that region, `DeviceError` when the device does.
    """
    name = region.name if name is None else name
    clock = machine.clock
    if not isinstance(clock, SteppedClock):
        raise ReplayError("a replay needs a machine with a SteppedClock, which stands still between accesses")
    start, count, others = clock.now(), 0, set()
    for record in records:
        if record.region != name:
            others.add(record.region)
            continue
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
            return Difference(record, count, value if isinstance(value, int) else None, region.device)
    if not count:
        there = ", ".join(sorted(repr(other) for other in others if other is not None)) or "none at all"
        raise ReplayError(f"the trace has no access of region {name!r}; it has accesses of {there}")
    return None
