"""`Bench`: a machine for tests of devices, without a PC around it. The fixture `bus` is one.

Stands on `machine.py`. It makes accesses as a guest would, counts interrupts, has RAM for DMA and a clock
that stands still; `resident.py` has the same accesses made by a CPU. What happened is kept for the report.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from iobus.bus import Bus, Device, IobusError, Region
from iobus.clock import SteppedClock
from iobus.dma import Dma
from iobus.doorbell import Event
from iobus.exits import MmioExit, PioExit
from iobus.irq import Line, Pin
from iobus.machine import Machine, attach_told
from iobus.memory import PAGE_SIZE, Memory
from iobus.testing import resident
from iobus.testing.faults import Faults, given_to, region_of
from iobus.testing.history import History
from iobus.testing.registers import Registers, registers_of
from iobus.testing.watchdog import Watch
from iobus.trace import Record
from iobus.vcpu import VCPU, NoExecutor
from iobus.widths import SIZES

RAM: Final = 1 << 20
"""Bytes of RAM, from address 0."""
PINS: Final = 24
"""How many interrupt inputs there are, as on a PC."""
_FIRST_ALLOCATED: Final = PAGE_SIZE  # address 0 is what a driver's bug looks like


class Accessor(Protocol):
    """Who makes a bench's accesses; each is over on return, and raises `DeviceError` where the device does."""

    def mmio(self, address: int, size: int, value: int | None) -> int:
        """Write `value`, or read (None), at a physical address; return what was read."""

    def pio(self, port: int, size: int, value: int | None) -> int:
        """The same at a port."""


class Direct:
    """Makes accesses at the vCPU's access path, without a CPU; RAM lies over devices as it does for one."""

    def __init__(self, vcpu: VCPU) -> None:
        self._vcpu: Final = vcpu
        self._memory: Final = vcpu.machine.memory
        vcpu.executor = _Counting(vcpu)

    def mmio(self, address: int, size: int, value: int | None) -> int:
        vcpu = self._vcpu
        if self._memory.find(address, size) is not None and not vcpu.eclipses_ram(address, size):
            if value is None:
                return self._memory.load(address, size)
            self._memory.store(address, size, value)
            return 0
        if value is None:
            return vcpu.mmio_path.read(address, size)
        vcpu.mmio_path.write(address, size, value)
        return 0

    def pio(self, port: int, size: int, value: int | None) -> int:
        path = self._vcpu.pio_path
        if value is None:
            return path.read(port, size)
        path.write(port, size, value)
        return 0


class _Counting(NoExecutor):
    """Without a CPU, what nobody claims is counted as it is with one."""

    def __init__(self, vcpu: VCPU) -> None:
        super().__init__()
        self._machine = vcpu.machine

    def unclaimed(self, exit: MmioExit | PioExit) -> int:
        return self._machine.complete_unclaimed(exit)


class Pins(dict[int, Pin]):
    """The interrupt inputs by number, each made when it is first asked for."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def __missing__(self, number: int) -> Pin:
        if not 0 <= number < PINS:
            raise ValueError(f"interrupt {number}: use 0 to {PINS - 1}")
        name = f"irq{number}"
        pin = self[number] = Pin(self._history.pin(name), name=name)
        return pin


class Bench:
    """A machine, and what a test of a device does with it. Devices take it where they take a PC (`connect`).

    `accessor` makes the accesses: by default the machine's CPU, on whatever engine, and without one the bench itself.
    The machine has a `SteppedClock`, and is given 1 MiB of RAM at address 0 where it has none at all.
    """

    def __init__(self, machine: Machine, accessor: Accessor | None = None) -> None:
        if not isinstance(machine.clock, SteppedClock):
            raise ValueError("a bench's machine has a SteppedClock, which stands still between accesses")
        self.machine: Final = machine
        self.clock: Final = machine.clock
        self.memory: Final[Memory] = machine.memory
        if not machine.memory.slots:
            machine.memory.add(0, RAM)
        self.history: Final = History(machine)
        self.pins: Final = Pins(self.history)
        """The interrupt inputs: `pins[5].level`, and `.count` for how often it went high."""
        self.faults: Final = Faults(machine, self.pins)
        """Faults on demand: accesses that fail, interrupts lost or late, a device that is gone."""
        self._accessor: Final = accessor or _accessor(machine)
        self._watch: Final = Watch(machine)
        self._allocated = _FIRST_ALLOCATED
        self._soon = threading.Event()
        self.clock.on_earlier = lambda deadline: self._soon.set()

    def start(self) -> None:
        """Keep what happens, and hold devices to the time limit, from now on."""
        self.history.start()
        self._watch.start()

    def stop(self) -> None:
        """End what `start` began, and all faults."""
        if not self.machine.hung:  # its lock is not to be had
            self.faults.end()
        self._watch.stop()
        self.history.stop()

    @property
    def time_limit(self) -> float:
        """How many seconds of the host a device has to answer; 10 unless a test sets it."""
        return self._watch.seconds

    @time_limit.setter
    def time_limit(self, seconds: float) -> None:
        self._watch.seconds = seconds

    # Devices.

    def attach(self, device: Device, base: int | None = None, length: int | None = None, **options: Any) -> Region:
        """Attach `device` to the memory-mapped I/O bus, having told it of the bench; return its region.

        A device with a method `connect(pc)` gets this bench first, which has what it uses of a PC: `irq(n)`,
        `irq_event(n)`, `machine`; one with `placed(region)` gets its region then. Otherwise as `Bus.attach`.
        """
        return self._attach(self.machine.mmio, device, base, length, options)

    def attach_ports(
        self, device: Device, base: int | None = None, length: int | None = None, **options: Any
    ) -> Region:
        """As `attach`, to the ports."""
        return self._attach(self.machine.pio, device, base, length, options)

    def irq(self, number: int, name: str = "") -> Line:
        """Return a new line of interrupt input `number`, 0 to 23, for a device to hold. Raises `ValueError`."""
        return self.pins[number].line(name)

    def irq_event(self, number: int, name: str = "") -> Event:
        """Return an event of which each ring is an edge at interrupt `number`, as `Pc.irq_event`; see `wait_for`."""
        line, event = self.irq(number, name), Event()
        self.machine.watch(event, line.pulse)
        return event

    def dma(self, device: Device) -> Dma:
        """Return `device`'s access to memory, as `Machine.dma`."""
        return self.machine.dma(device)

    def alloc(self, size: int, align: int = 16) -> int:
        """Return the address of `size` bytes of RAM that this gave to nobody else, for DMA. Raises `ValueError`."""
        if size < 1 or align < 1 or align & align - 1:
            raise ValueError(f"{size} bytes aligned to {align}: give 1 byte or more, and a power of two")
        at = -(-self._allocated // align) * align
        if at + size > RAM - resident.SIZE:
            raise ValueError(f"{size} bytes more do not fit in the bench's {RAM} bytes of RAM, less those of its CPU")
        self._allocated = at + size
        return at

    # What a guest does.

    def read(self, address: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at a physical address. What nobody claims reads as all ones.

        Raises `DeviceError` when the device does, what `Machine.watch` called for one raised since, and `ValueError`
        for an access that a CPU would split: its parts are accesses of their own.
        """
        self.machine.raise_error()
        return self._accessor.mmio(*self._checked(address, size), None)

    def write(self, address: int, size: int, value: int) -> None:
        """Write `size` bytes at a physical address; otherwise as `read`. What nobody claims is dropped."""
        self.machine.raise_error()
        self._accessor.mmio(*self._checked(address, size, value), value)

    def port_in(self, port: int, size: int) -> int:
        """Read `size` bytes (1, 2 or 4) at a port: IN. Otherwise as `read`."""
        self.machine.raise_error()
        return self._accessor.pio(*self._checked_port(port, size), None)

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write `size` bytes at a port: OUT. Otherwise as `write`."""
        self.machine.raise_error()
        self._accessor.pio(*self._checked_port(port, size, value), value)

    def registers(self, device: Device | Region) -> Registers:
        """Return the registers of an attached `RegisterBank` by name, as a driver sees them: each use is an access.

        A device that is attached at several places is seen at the first. Raises `ValueError` for a device that is
        not attached, `TypeError` for one without a register map.
        """
        region = device if isinstance(device, Region) else region_of(self.machine.buses, device)
        if region.bus is self.machine.pio:
            return registers_of(region, self.port_in, self.port_out)
        return registers_of(region, self.read, self.write)

    # Time.

    def advance(self, ns: int) -> None:
        """Let `ns` nanoseconds pass: timers fire, each at its own time. Raises `TimerError` when one does."""
        self.machine.raise_error()
        with self._watch.stepping(), self.machine.lock:
            self.clock.advance(ns)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait for work that a device does elsewhere, and that comes back by `Clock.call_soon`.

        Guest time stands still. Raises what a device's callback raises meanwhile, and `TimeoutError` when
        `condition()`, asked with the machine lock held, is not true after `seconds` of the host.
        """
        end = time.monotonic() + seconds
        while True:
            self._soon.clear()
            self.machine.raise_error()
            with self._watch.stepping(), self.machine.lock:
                self.clock.run_due()
                if condition():
                    return
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the condition was not true after {seconds:g} s")
            self._soon.wait(min(left, _LOOK_AGAIN))

    # What happened.

    def check(self) -> None:
        """Raise what a device's callback raised (`Machine.watch`) and no access or step of time has raised yet."""
        with self._watch.stepping():
            self.machine.settle()

    def failure(self) -> str:
        """Return the same as text, for the report of a test that fails otherwise; empty where there is none."""
        try:
            self.check()
        except IobusError as exc:
            return "".join(traceback.format_exception(exc)).rstrip()
        return ""

    @property
    def accesses(self) -> list[Record]:
        """The latest accesses, up to 1000, the latest last; also those that nobody claimed (`region` None)."""
        return self.history.accesses

    def _attach(self, bus: Bus, device: Any, base: int | None, length: int | None, options: dict[str, Any]) -> Region:
        given = given_to(
            self.machine, lambda: [*self.pins.values()], lambda: attach_told(self, bus, device, base, length, options)
        )
        self.faults.attached(given)
        return given.region

    def _checked(self, address: int, size: int, value: int = 0) -> tuple[int, int]:
        if size not in SIZES:
            raise ValueError(f"access of {size!r} bytes at {address:#x}: a bus access has 1, 2, 4 or 8")
        if address % PAGE_SIZE + size > PAGE_SIZE:
            raise ValueError(f"{size} bytes at {address:#x} cross a page, so a CPU splits them: make two accesses")
        return self._fits(address, size, value)

    def _checked_port(self, port: int, size: int, value: int = 0) -> tuple[int, int]:
        if size not in (1, 2, 4) or not 0 <= port <= 0x10000 - size:
            raise ValueError(f"access of {size!r} bytes at port {port:#x}: 1, 2 or 4 within 0x10000")
        return self._fits(port, size, value)

    @staticmethod
    def _fits(address: int, size: int, value: int) -> tuple[int, int]:
        if address < 0 or value < 0 or value >> 8 * size:
            raise ValueError(f"value {value:#x} of {size} bytes at {address:#x}: it must fit, and nothing be negative")
        return address, size


def _accessor(machine: Machine) -> Accessor:
    vcpu = machine.vcpus[0]
    return Direct(vcpu) if machine.engine is None else resident.Resident(vcpu, RAM - resident.SIZE)


_LOOK_AGAIN: Final = 0.05  # seconds: a condition may become true without `call_soon`


@contextmanager
def bench(machine: Machine, accessor: Accessor | None = None) -> Iterator[Bench]:
    """A bench that is started, and stopped in the end."""
    made = Bench(machine, accessor)
    made.start()
    try:
        yield made
    finally:
        made.stop()
