"""`--trace`: one line of text for each access, claimed or not. Above `bus.py`'s observer.

A line is the guest's time in seconds, r or w, the bus, the address, the size in bytes, the value and the region:

    2.718281 w mmio 0xd0000004 4 0x0000cafe Scratch
    2.718290 r mmio 0xd0001000 4 - (unclaimed)
"""

from __future__ import annotations

from collections.abc import Callable

from iobus.bus import Bus, Region
from iobus.machine import Machine

_LAST = -1 << 64  # behind whatever priority a device has


def trace(machine: Machine, emit: Callable[[str], None]) -> None:
    """Call `emit` with a line for each access from now on."""

    def line(bus: str, address: int, size: int, is_write: bool, value: int | None, name: str) -> None:
        shown = "-" if value is None else f"{value:#0{2 + 2 * size}x}"
        emit(f"{machine.clock.now() / 1e9:.6f} {'w' if is_write else 'r'} {bus} {address:#x} {size} {shown} {name}")

    def observe(region: Region, address: int, size: int, read: int | None, written: int | None) -> None:
        value = read if written is None else written
        line(region.bus.name, address, size, written is not None, value, region.name)

    for bus in (machine.mmio, machine.pio):
        bus.attach(_Unclaimed(bus, line), priority=_LAST)
    for bus in buses(machine):
        bus.observer = observe


def buses(machine: Machine) -> list[Bus]:
    """Return the machine's buses and its vCPUs'."""
    return [machine.mmio, machine.pio, *(bus for vcpu in machine.vcpus for bus in (vcpu.mmio, vcpu.pio))]


class _Unclaimed:
    """Asked after everybody else, it tells of the access and declines it too."""

    name = "(unclaimed)"

    def __init__(self, bus: Bus, line: Callable[[str, int, int, bool, int | None, str], None]) -> None:
        self._bus = bus.name
        self._line = line

    def in_range(self, address: int, size: int) -> bool:
        return True

    def read(self, address: int, size: int) -> object:
        self._line(self._bus, address, size, False, None, self.name)
        return NotImplemented

    def write(self, address: int, size: int, value: int) -> object:
        self._line(self._bus, address, size, True, value, self.name)
        return NotImplemented
