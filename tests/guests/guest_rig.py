"""Small guests on the whole PC: what the tests in this directory share.

The guests are the .s files here, kept with what they assemble to (.hex) by tools/assemble_guests.py. A guest is
entered at one of its symbols, writes down what it sees and ends itself; the test says what that is on a real PC.
The rig of the Unicorn engine's tests (tests/unicorn/rig.py) has the tables, the stacks and the addresses.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rig

from iobus.bus import Device
from iobus.clock import SteppedClock
from iobus.cpu_registers import Segment
from iobus.devices.debug_exit import DebugExitPort
from iobus.devices.test_device import EchoMemory, LineSwitches
from iobus.engines.kvm.engine import KvmEngine
from iobus.exits import DebugExit
from iobus.machine import Engine
from iobus.pc import layout
from iobus.pc.pc import Pc

FOLDER: Final = Path(__file__).parent
SCRATCH, COUNTS = 0x50000, 0x51000
TIME: Final = 0x2100


class TimePort(Device):
    """Four ports: a write of a number lets so many ns pass, on the test's clock or the host's."""

    length = 4

    def __init__(self, clock: SteppedClock | None) -> None:
        self._clock = clock

    def write(self, offset: int, size: int, value: int) -> None:
        if self._clock is None:
            time.sleep(value / 1e9)
        else:
            self._clock.advance(value)


@dataclass(frozen=True)
class Image:
    """What a .hex file holds."""

    code: bytes
    symbols: dict[str, int]


@functools.cache
def image(name: str) -> Image:
    """Return the guest NAME.hex."""
    symbols, _, code = (FOLDER / f"{name}.hex").read_text().partition("\n\n")
    pairs = [line.split() for line in symbols.splitlines()]
    return Image(bytes.fromhex(code), {symbol: int(at, 16) for at, symbol in pairs})


class PcGuest(rig.Guest):
    """A PC of 2 MiB with a guest in it, about to enter it at `entry` in long mode at CPL 0."""

    def __init__(self, name: str, entry: str, *, cpus: int = 1, stepped: bool = False) -> None:
        self.image = image(name)
        engine = self.engine()
        clock = SteppedClock() if stepped and engine.irqchip is None else None  # the kernel's chips follow its own
        self.pc = pc = Pc(engine, memory=rig.RAM, cpus=cpus, clock=clock)
        assert rig.way != "native" or getattr(engine, "fallback_reason", None) is None
        self.machine, self.vcpu, self.memory = pc.machine, pc.machine.vcpus[0], pc.machine.memory
        lines = LineSwitches([pc.gsi(number) for number in range(len(pc.pins))])
        finish = DebugExitPort(lambda code: pc.machine.stop(DebugExit(code)))
        for device, base in ((lines, layout.TEST_LINES), (finish, layout.DEBUG_EXIT), (TimePort(clock), TIME)):
            pc.machine.pio.attach(device, base, device.length)
        pc.machine.mmio.attach(EchoMemory(), layout.TEST_MEMORY)
        self.memory.write(rig.CODE, self.image.code)
        self.start()
        self.enter(entry)

    def engine(self) -> Engine:
        kind, _, irqchip = rig.way.partition("-")
        return KvmEngine(irqchip) if kind == "kvm" and irqchip else super().engine()  # type: ignore[arg-type]

    def enter(self, entry: str) -> None:
        """Have the first CPU start at a symbol."""
        self.set(rip=self.image.symbols[entry], rbx=layout.LAPIC, rbp=layout.IOAPIC, rdi=rig.DATA, r15=0)

    def run(self) -> list[int]:
        """Run to the guest's end; return what the first CPU logged."""
        exit = self.machine.run(timeout=60)
        assert isinstance(exit, DebugExit), (exit, hex(self.vcpu.registers.rip), self.log())
        return self.log()

    def log(self, cpu: int = 0) -> list[int]:
        """What a CPU has logged: 32-bit words."""
        start = rig.DATA + 0x1000 * cpu
        size = self.machine.vcpus[cpu].registers.rdi - start
        assert 0 <= size <= 0x1000
        return [self.memory.load(start + at, 4) for at in range(0, size, 4)]

    def counts(self, vector: int) -> list[int]:
        """How often each CPU has taken `vector`, by `counting_handler`."""
        cpus = range(len(self.machine.vcpus))
        return [self.memory.load(COUNTS + 0x400 * cpu + 4 * vector, 4) for cpu in cpus]


class ProtectedPcGuest(PcGuest, rig.ProtectedGuest):
    """As `PcGuest`, in 32-bit protected mode."""


class RealModePcGuest(PcGuest, rig.RealModeGuest):
    """As `PcGuest`, in real mode: CS is 0x1000, where the guest is, and the other segments are 0."""

    def start(self) -> None:
        super().start()
        self.set(cs=Segment(0x1000, rig.CODE, 0xFFFF, 0x9B))

    def enter(self, entry: str) -> None:
        self.set(rip=self.image.symbols[entry] - rig.CODE)


def run16(name: str, entry: str) -> list[int]:
    """As `run`, in real mode."""
    with RealModePcGuest(name, entry) as guest:
        return guest.run()


def run32(name: str, entry: str) -> list[int]:
    """As `run`, in 32-bit protected mode."""
    with ProtectedPcGuest(name, entry) as guest:
        return guest.run()


def run(name: str, entry: str, *, cpus: int = 1, stepped: bool = False) -> list[int]:
    """Run a guest to its end; return what its first CPU logged. `stepped`: time passes where the guest says so."""
    with PcGuest(name, entry, cpus=cpus, stepped=stepped) as guest:
        return guest.run()
