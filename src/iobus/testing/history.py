"""The last things that happened on a machine, for the report of a test that failed: `History`.

Stands on `trace.py`'s records. What is kept is what happened; it is made readable, with the names of
registers and fields, only when it is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from iobus.bus import Region
from iobus.irq import Pin
from iobus.machine import Machine
from iobus.path import Access, AccessPath, Observer
from iobus.trace import Record, Space, Touched, touched

KEPT: Final = 1000
"""How many accesses and changes of pins are kept."""
SHOWN: Final = 20
"""How many of them a report shows."""


class _Seen(NamedTuple):
    time: int
    vcpu: int
    space: Space
    access: Access
    rip: int


class _Level(NamedTuple):
    time: int
    name: str
    level: bool


class History:
    """What was accessed and which pins changed, the latest `KEPT` of them, from `start` to `stop`.

    `wanted(region)`, where given, says whether accesses of a region are kept; those that nobody claims always are.
    """

    def __init__(self, machine: Machine, wanted: Callable[[Region], bool] | None = None) -> None:
        self._machine: Final = machine
        self._clock: Final = machine.clock
        self._wanted: Final = wanted
        self._events: deque[_Seen | _Level] = deque(maxlen=KEPT)
        self._observed: list[tuple[AccessPath, Observer]] = []
        self._pins: dict[Pin, Callable[[bool], None]] = {}

    def start(self) -> None:
        """Keep what happens from now on, instead of what did."""
        self._events.clear()
        for vcpu in self._machine.vcpus:
            rip = vcpu.executor.rip
            self._observed += [
                (vcpu.mmio_path, self._observer(vcpu.index, "mmio", rip)),
                (vcpu.pio_path, self._observer(vcpu.index, "pio", rip)),
            ]
        for path, observer in self._observed:
            path.observe(observer)

    def stop(self) -> None:
        """Keep no more."""
        for path, observer in self._observed:
            path.ignore(observer)
        self._observed.clear()
        for pin, sink in self._pins.items():
            pin.ignore(sink)
        self._pins.clear()

    def pin(self, name: str) -> Callable[[bool], None]:
        """Return a sink for the pin `name` that keeps its changes."""

        def changed(level: bool) -> None:
            self._events.append(_Level(self._clock.now(), name, level))

        return changed

    def listen(self, pin: Pin, name: str) -> None:
        """Keep the changes of `pin`, as `name`'s, until `stop`."""
        if pin not in self._pins:
            self._pins[pin] = self.pin(name)
            pin.listen(self._pins[pin])

    @property
    def accesses(self) -> list[Record]:
        """The kept accesses as records of a trace, the latest last."""
        return [_record(event) for event in tuple(self._events) if isinstance(event, _Seen)]

    def report(self) -> str:
        """Return a line for each of the latest `SHOWN` things that happened; empty where nothing did."""
        events = tuple(self._events)
        lines = [str(_record(event)) if isinstance(event, _Seen) else _line(event) for event in events[-SHOWN:]]
        if len(events) > SHOWN:
            more = "at least " if len(events) == KEPT else ""
            lines.insert(0, f"({more}{len(events) - SHOWN} before these)")
        return "\n".join(lines)

    def _observer(self, vcpu: int, space: Space, rip: Callable[[], int]) -> Observer:
        now, keep, wanted = self._clock.now, self._events.append, self._wanted

        def observe(access: Access) -> None:
            if wanted is None or access.region is None or wanted(access.region):
                keep(_Seen(now(), vcpu, space, access, rip()))

        return observe


def _record(seen: _Seen) -> Record:
    region, address, size, is_write, value, _, taken, offset = seen.access
    name = device = None
    registers = tuple[Touched, ...]()
    if region is not None:
        name, device = region.name, type(region.device).__name__
        registers = touched(region.device, offset, size, value, is_write)
    return Record(
        seen.time, seen.vcpu, seen.space, address, size, is_write, value, name, device, offset, registers,
        seen.rip, taken,
    )  # fmt: skip


def _line(event: _Level) -> str:
    return f"{event.time / 1e9:.6f} {event.name} {'high' if event.level else 'low'}"
