"""`--trace`: one line of text for each access, claimed or not. Above `bus.py`'s observer and `machine.py`'s.

A line is the guest's time in seconds, r or w, the bus, the address, the size in bytes, the value and the region:

    2.718281 w mmio 0xd0000004 4 0x0000cafe Scratch
    2.718290 r mmio 0xd0001000 4 0xffffffff (unclaimed)
"""

from __future__ import annotations

from collections.abc import Callable

from iobus.bus import Bus, Region
from iobus.exits import MmioExit, PioExit
from iobus.machine import Machine
from iobus.vcpu import VCPU


def trace(machine: Machine, emit: Callable[[str], None]) -> None:
    """Call `emit` with a line for each access from now on."""

    def line(is_write: bool, bus: str, address: int, size: int, value: int, name: str) -> None:
        seconds, verb = machine.clock.now() / 1e9, "w" if is_write else "r"
        emit(f"{seconds:.6f} {verb} {bus} {address:#x} {size} {value:#0{2 + 2 * size}x} {name}")

    def claimed(region: Region, address: int, size: int, read: int | None, written: int | None) -> None:
        value = read if written is None else written
        line(written is not None, region.bus.name, address, size, value or 0, region.name)

    def unclaimed(_: VCPU, exit: MmioExit | PioExit) -> None:
        bus = machine.mmio if isinstance(exit, MmioExit) else machine.pio
        value = exit.data if exit.is_write else (1 << 8 * exit.size) - 1
        line(exit.is_write, bus.name, exit.address, exit.size, value, "(unclaimed)")

    for bus in buses(machine):
        bus.observer = claimed
    machine.on_unclaimed = unclaimed


def buses(machine: Machine) -> list[Bus]:
    """Return the machine's buses and its vCPUs'."""
    return [machine.mmio, machine.pio, *(bus for vcpu in machine.vcpus for bus in (vcpu.mmio, vcpu.pio))]
