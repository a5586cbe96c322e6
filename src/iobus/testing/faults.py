"""Faults on demand, `bus.faults` and `guest.faults`: failing accesses, late and lost interrupts, a device that is gone.

Stands on the bus's own rules and knows no engine, so a fault is the same without a CPU and under a guest. A failing
access is a claim above the device's own, which declines what is to pass. Interrupts are taken at `Pin.intercept`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

from iobus.bus import Bus, Device, Region
from iobus.clock import Timer
from iobus.irq import Line, Pin
from iobus.machine import Machine
from iobus.registers.entries import RegisterMap, placed

_ABOVE_ALL: Final = 1 << 30


class Pins(Protocol):
    """The interrupt inputs by number."""

    def __getitem__(self, number: int, /) -> Pin:
        """Return input `number`."""


class Given(NamedTuple):
    """What a device has got when it was attached."""

    region: Region
    lines: list[tuple[Pin, Line]]
    timers: list[Timer]


class Fault:
    """A fault that is there until `end`, or the end of a `with`; at the latest until the test ends."""

    def __init__(self, times: int | None, end: Callable[[], None]) -> None:
        self.count = 0
        """How often it has struck."""
        self._times: Final = times
        self._end: Callable[[], None] | None = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Have all as it should be again."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def strikes(self) -> bool:
        """Whether it strikes once more; counted."""
        if self._times is not None and self.count >= self._times:
            return False
        self.count += 1
        return True


class Faults:
    """The faults of one machine, all ended by `end`."""

    def __init__(self, machine: Machine, pins: Pins) -> None:
        self._machine: Final = machine
        self._pins: Final = pins
        self._given: list[Given] = []
        self._faults: list[Fault] = []
        self.regions: Final[list[Region]] = []
        """The claims of failing accesses."""

    def attached(self, given: Given) -> None:
        """Know what a device has got."""
        self._given.append(given)

    def fail(
        self,
        device: Device | Region,
        where: str | int | None = None,
        *,
        times: int | None = None,
        reads: bool = True,
        writes: bool = True,
        value: int = (1 << 64) - 1,
    ) -> Fault:
        """Make accesses to `device` fail: reads give `value`, by default all ones, and writes are lost.

        `where` is a register's name or an offset in bytes, None for all; accesses that touch it fail, the first
        `times` of them or all. DMA of other devices fails as a CPU's access does. Raises `ValueError` for a device
        that is not attached or a register that it has not.
        """
        region = self._region(device)
        first, end = _extent(region, where)
        fault = Fault(times, lambda: claim.detach())
        overlay = _Overlay(region, first, end, fault, reads, writes, value)
        claim = region.bus.attach(overlay, priority=_ABOVE_ALL, name=f"{region.name} (fault)")
        self.regions.append(claim)
        self._faults.append(fault)
        return fault

    def remove(self, device: Device | Region) -> None:
        """Take a device away without a word, as when a card is pulled: reads give all ones, writes are lost.

        Its interrupt lines are low, and the timers that it made in `connect` stand still. For good: attach another.
        """
        gone = self._region(device).device
        with self._machine.lock:
            for bus in self._machine.buses:
                for region in bus.regions:
                    if region.device is gone:
                        region.detach()
            for given in self._given:
                if given.region.device is gone:
                    for pin, line in given.lines:
                        pin.remove(line)
                    for timer in given.timers:
                        timer.close()
            self._given = [given for given in self._given if given.region.device is not gone]

    def delay_interrupt(self, number: int, ns: int, *, times: int | None = None) -> Fault:
        """Let interrupt `number` arrive `ns` nanoseconds of the machine's clock late, the first `times` or all.

        When the fault ends, what is on its way arrives at once.
        """
        pin, clock = self._pins[number], self._machine.clock
        waiting: deque[tuple[bool, Timer]] = deque()

        def arrive() -> None:
            pin.change(waiting.popleft()[0])

        def change(level: bool) -> None:
            if not waiting and not (level and fault.strikes()):
                pin.change(level)
                return
            if waiting and level:
                fault.strikes()
            timer = clock.timer(arrive, f"late irq{number}")
            waiting.append((level, timer))
            timer.arm(clock.now() + ns)

        def end() -> None:
            with self._machine.lock:
                pin.intercept = None
                while waiting:
                    level, timer = waiting.popleft()
                    timer.close()
                    pin.change(level)

        fault = self._intercept(pin, number, times, change, end)
        return fault

    def lose_interrupt(self, number: int, *, times: int | None = None) -> Fault:
        """Lose interrupt `number`, the first `times` or all: its line goes up, and the pin does not.

        When the fault ends, a line that is still up is seen.
        """
        pin = self._pins[number]
        lost = 0

        def change(level: bool) -> None:
            nonlocal lost
            if level and fault.strikes():
                lost += 1
            elif not level and lost:
                lost -= 1
            else:
                pin.change(level)

        def end() -> None:
            nonlocal lost
            with self._machine.lock:
                pin.intercept = None
                while lost:
                    lost -= 1
                    pin.change(True)

        fault = self._intercept(pin, number, times, change, end)
        return fault

    def end(self) -> None:
        """End all faults, and forget what devices have got."""
        for fault in self._faults:
            fault.end()
        self._faults.clear()
        self.regions.clear()
        self._given.clear()

    def _intercept(
        self, pin: Pin, number: int, times: int | None, change: Callable[[bool], None], end: Callable[[], None]
    ) -> Fault:
        if pin.intercept is not None:
            raise ValueError(f"interrupt {number} has a fault already: end that first")
        fault = Fault(times, end)
        with self._machine.lock:
            pin.intercept = change
        self._faults.append(fault)
        return fault

    def _region(self, device: Device | Region) -> Region:
        if isinstance(device, Region):
            return device
        return region_of(self._machine.buses, device)


class _Overlay(Device):
    """Lies over a device's region, wherever that is: fails what it is to fail, and declines the rest."""

    def __init__(
        self, region: Region, first: int, end: int, fault: Fault, reads: bool, writes: bool, value: int
    ) -> None:
        self.part_of = region.device  # the device's own DMA to itself is refused as ever
        self._region, self._first, self._end = region, first, end
        self._fault, self._reads, self._writes, self._value = fault, reads, writes, value

    def in_range(self, address: int, size: int) -> bool:
        region = self._region
        start = address - region.base
        return region.attached and region.enabled and start < self._end and self._first < start + size

    def read(self, offset: int, size: int) -> int:
        if not self._reads or not self._fault.strikes():
            return NotImplemented  # type: ignore[no-any-return]
        return self._value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> object:
        if not self._writes or not self._fault.strikes():
            return NotImplemented
        return None

    def describe(self, offset: int, size: int, value: int, is_write: bool) -> Any:
        """As the device names what was touched."""
        describe = getattr(self._region.device, "describe", None)
        return () if describe is None else describe(offset - self._region.base, size, value, is_write)


def region_of(buses: Sequence[Bus], device: object) -> Region:
    """Return the first region of `device`. Raises `ValueError` where it has none."""
    for bus in buses:
        for region in bus.regions:
            if region.device is device:
                return region
    raise ValueError(f"{type(device).__name__} is not attached: attach it first")


def given_to(machine: Machine, pins: Callable[[], Sequence[Pin]], attach: Callable[[], Region]) -> Given:
    """Attach a device, and return what it got of lines and timers meanwhile."""
    lines = {line for pin in pins() for line in pin.lines}
    timers = set(machine.clock.timers)
    region = attach()
    new = [(pin, line) for pin in pins() for line in pin.lines if line not in lines]
    return Given(region, new, list(set(machine.clock.timers) - timers))


def _extent(region: Region, where: str | int | None) -> tuple[int, int]:
    """The offsets of the first byte of `where` and of the one behind its last."""
    if where is None:
        return 0, region.length
    if isinstance(where, int):
        if not 0 <= where < region.length:
            raise ValueError(f"offset {where:#x}: {region.name} has {region.length:#x} bytes")
        return where, where + 1
    bank = getattr(region.device, "map", None)
    if not isinstance(bank, RegisterMap):
        raise ValueError(f"{type(region.device).__name__} has no register map: give {where!r} as an offset")
    names = []
    for item in placed(bank.members):
        if item.name == where:
            return item.offset, item.offset + item.register.size
        names.append(item.name)
    raise ValueError(f"{bank.name} has no register {where!r}; it has {', '.join(names)}")
