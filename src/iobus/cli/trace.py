"""`--trace`: one line for each access, in the order they happen.

0.123456 read  mmio 0xd0000004 4 = 0xc0ffee  Scratch+0x4
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from iobus.bus import Bus, Region
from iobus.exits import MmioExit, PioExit
from iobus.machine import Machine
from iobus.vcpu import VCPU


class Trace(AbstractContextManager["Trace"]):
    """Observes every bus of `machine` while entered; writes to `path`, or to standard error."""

    def __init__(self, machine: Machine, path: Path | None) -> None:
        self._machine = machine
        self._path = path
        self._out: TextIO = sys.stderr
        self._buses = [machine.mmio, machine.pio]
        for vcpu in machine.vcpus:
            self._buses += [vcpu.mmio, vcpu.pio]

    def __enter__(self) -> Trace:
        if self._path is not None:
            self._out = self._path.open("w")
        for bus in self._buses:
            bus.observer = self._observer(bus)
        self._machine.on_unclaimed = self._unclaimed
        return self

    def __exit__(self, *_: object) -> None:
        for bus in self._buses:
            bus.observer = None
        self._machine.on_unclaimed = None
        if self._path is not None:
            self._out.close()

    def _observer(self, bus: Bus) -> Callable[[Region, int, int, int | None, int | None], None]:
        space = bus.name

        def observe(region: Region, address: int, size: int, read: int | None, written: int | None) -> None:
            self._line(written is not None, space, address, size, read if written is None else written)
            self._out.write(f"  {region.name}+{address - region.base:#x}\n")

        return observe

    def _unclaimed(self, vcpu: VCPU, exit: MmioExit | PioExit) -> None:
        value = exit.data if exit.is_write else (1 << 8 * exit.size) - 1
        self._line(exit.is_write, "mmio" if isinstance(exit, MmioExit) else "pio", exit.address, exit.size, value)
        self._out.write("  unclaimed\n")

    def _line(self, is_write: bool, space: str, address: int, size: int, value: int | None) -> None:
        seconds = self._machine.clock.now() / 1e9
        self._out.write(
            f"{seconds:.6f} {'write' if is_write else 'read '} {space} {address:#x} {size} = {value or 0:#x}"
        )
