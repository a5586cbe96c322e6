"""An HPET on a stepped clock, with what it does to the lines around it, for its tests."""

from __future__ import annotations

from iobus.clock import SteppedClock
from iobus.devices import hpet as h
from iobus.devices.hpet import Hpet
from iobus.irq import Line, Pin

CFG, CMP, FSB = h.TIMER_CONFIGURATION, h.TIMER_COMPARATOR, h.TIMER_FSB
ONES = (1 << 64) - 1
LEVEL, ENABLE, PERIODIC, VAL_SET, MODE32, FSB_EN = (
    h.INT_TYPE_CNF, h.INT_ENB_CNF, h.TYPE_CNF, h.VAL_SET_CNF, h.MODE32_CNF, h.FSB_EN_CNF,
)  # fmt: skip
ROUTE = 20 << 9
"""A route that every timer of the bench can have."""


class Bench:
    """An HPET whose lines write down their changes: `(count of ticks, line, level)`."""

    def __init__(self, start_ns: int = 0) -> None:
        self.clock = SteppedClock()
        self.clock.advance(start_ns)
        self.changes: list[tuple[int, str, bool]] = []
        self.messages: list[tuple[int, int, int]] = []
        self.replaced: list[bool] = []
        self.pins: dict[str, Pin] = {}
        self.hpet = Hpet(
            self.clock,
            [{number: self.line(f"{timer}>{number}") for number in (11, 20)} for timer in range(3)],
            (self.line("irq0"), self.line("irq8")),
            replace=self.replaced.append,
            fsb=lambda address, value: self.messages.append((self.tick, address, value)),
        )
        self.replaced.clear()

    @property
    def tick(self) -> int:
        return self.clock.now() // 10

    def line(self, name: str) -> Line:
        self.pins[name] = Pin(lambda level: self.changes.append((self.tick, name, level)), name=name)
        return self.pins[name].line()

    def step(self, ticks: int) -> None:
        self.clock.advance(10 * ticks)

    def get(self, register: int, timer: int | None = None, size: int = 8) -> int:
        return self.hpet.read(register + (0 if timer is None else 0x100 + 0x20 * timer), size)

    def put(self, register: int, value: int, timer: int | None = None, size: int = 8) -> None:
        self.hpet.write(register + (0 if timer is None else 0x100 + 0x20 * timer), size, value)

    def run(self, *, legacy: bool = False) -> None:
        self.put(h.CONFIGURATION, 3 if legacy else 1)

    def halt(self) -> None:
        self.put(h.CONFIGURATION, 0)

    def one_shot(self, at: int, timer: int = 0, flags: int = 0) -> None:
        self.put(CFG, ENABLE | ROUTE | flags, timer)
        self.put(CMP, at, timer)

    def rises(self) -> list[tuple[int, str]]:
        found = [(tick, name) for tick, name, level in self.changes if level]
        self.changes.clear()
        return found

    def high(self) -> list[str]:
        return [name for name, pin in self.pins.items() if pin.level]


def periodic(bench: Bench, first: int, period: int, timer: int = 0, flags: int = 0) -> None:
    """As software does it: VAL_SET, the comparator, the period."""
    bench.put(CFG, ENABLE | ROUTE | PERIODIC | VAL_SET | flags, timer)
    bench.put(CMP, first, timer)
    bench.put(CMP, period, timer)
