"""A PIT on a stepped clock, for its tests."""

from __future__ import annotations

from iobus.clock import SteppedClock
from iobus.devices.i8254 import Pit
from iobus.devices.system_control_b import SystemControlB
from iobus.irq import Pin

NS = 1_000_000_000
HZ = 1_193_182


def ns_of(pulse: int) -> int:
    """The first nanosecond at which `pulse` CLK pulses have come."""
    return -(-pulse * NS // HZ)


class Bench:
    """A PIT on a stepped clock, with the times in pulses of counter 0's line changes."""

    def __init__(self, start_ns: int = 0) -> None:
        self.clock = SteppedClock()
        self.clock.advance(start_ns)
        self.changes: list[tuple[int, bool]] = []
        pin = Pin(lambda level: self.changes.append((self.pulse, level)))
        self.line = pin.line("timer")
        self.pit = Pit(self.clock, self.line)
        self.port61 = SystemControlB(self.pit, self.clock)

    @property
    def pulse(self) -> int:
        return self.clock.now() * HZ // NS

    def step(self, pulses: int) -> None:
        self.clock.advance(max(0, ns_of(self.pulse + pulses) - self.clock.now()))

    def rises(self) -> list[int]:
        found = [pulse for pulse, level in self.changes if level]
        self.changes.clear()
        return found

    def control(self, value: int) -> None:
        self.pit.write(3, 1, value)

    def program(self, counter: int, mode: int, count: int, *, bcd: bool = False) -> None:
        self.control(counter << 6 | 0x30 | mode << 1 | bcd)
        self.pit.write(counter, 1, count & 0xFF)
        self.pit.write(counter, 1, count >> 8)

    def count(self, counter: int) -> int:
        """Latch and read a two-byte count."""
        self.control(counter << 6)
        return self.pit.read(counter, 1) | self.pit.read(counter, 1) << 8

    def status(self, counter: int) -> int:
        self.control(0xE0 | 2 << counter)
        return self.pit.read(counter, 1)

    def out(self, counter: int) -> bool:
        return bool(self.status(counter) & 0x80)

    def wave(self, counter: int, pulses: int) -> str:
        """OUT now and after each of the next pulses: H or L."""
        seen = "H" if self.out(counter) else "L"
        for _ in range(pulses):
            self.step(1)
            seen += "H" if self.out(counter) else "L"
        return seen
