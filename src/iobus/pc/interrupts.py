"""The PC's interrupt controllers, wherever they are: devices in Python, or the engine's own.

Beside `pc.py`, which wires its devices to the lines that these give. An engine may have the LAPICs itself
(`irq.Irqchip`), so that an IOAPIC and an 8259 pair in Python deliver to those; or all of them. The guest sees
the same machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from iobus.bus import IobusError
from iobus.devices.i8259 import PicPair
from iobus.devices.ioapic import IoApic
from iobus.devices.lapic import Lapic
from iobus.devices.lapic_timer import TIMER_HZ
from iobus.irq import ApicBus, Pin
from iobus.machine import Machine
from iobus.memory import PAGE_SIZE
from iobus.pc import layout
from iobus.vcpu import VCPU

PINS: Final = 24

_Chip = TypeVar("_Chip")


class NoSuchDeviceError(IobusError):
    """An interrupt controller that the engine has itself was asked for as a device."""


class Controllers:
    """The interrupt controllers of `machine`, attached to its buses where they are devices."""

    def __init__(self, machine: Machine) -> None:
        chip = None if machine.engine is None else machine.engine.irqchip
        self.irqchip: Final = chip
        """What the engine has of them; None where all are devices."""
        self.apic_bus: Final = ApicBus() if chip is None else chip.apic_bus
        self.lapics: Final = () if chip is not None else self._make_lapics(machine)
        self._pic: PicPair | None = None
        self._ioapic: IoApic | None = None
        for vcpu in machine.vcpus:
            vcpu.features.apic_timer_hz = TIMER_HZ
            vcpu.features.x2apic = vcpu.executor.traps_msrs
            vcpu.features.tsc_deadline = vcpu.executor.tsc is not None
        if chip is not None and chip.whole:
            return
        if chip is not None:
            self._extint = ExtInt(machine.vcpus[0], self.acknowledge)
            machine.vcpus[0].controller = self._extint
        self._pic = pic = PicPair(self._pic_output)
        self._ioapic = IoApic(self.apic_bus, apic_id=layout.IOAPIC_ID)
        self._pin_2 = Pin(self._ioapic.pin(layout.TIMER_GSI), name="pin 2")  # of the timer's line, and of pin 2's own
        for port, base in ((pic.master, layout.PIC_MASTER), (pic.slave, layout.PIC_SLAVE), (pic.elcr, layout.ELCR)):
            machine.pio.attach(port, base, 2)
        machine.mmio.attach(self._ioapic, layout.IOAPIC, PAGE_SIZE)

    @property
    def pic(self) -> PicPair:
        """The 8259 pair. Raises `NoSuchDeviceError`."""
        return _device(self._pic, "8259 pair")

    @property
    def ioapic(self) -> IoApic:
        """The I/O APIC. Raises `NoSuchDeviceError`."""
        return _device(self._ioapic, "I/O APIC")

    def acknowledge(self) -> int | None:
        """Run the 8259's INTA cycle."""
        return self.pic.acknowledge()

    def pin(self, number: int) -> Pin:
        """Return interrupt input `number`: 8259 and IOAPIC alike, as on a PC."""
        gsi = layout.TIMER_GSI if number == layout.IRQ_TIMER else number
        sinks: list[Callable[[bool], None]] = []
        if self.irqchip is not None and self.irqchip.whole:
            sinks.append(partial(self.irqchip.set_line, number))
        else:
            if number < 16 and number != 2:
                sinks.append(partial(self.pic.set_pin, number))
            sinks.append(self._pin_2.line(f"irq{number}").set if gsi == layout.TIMER_GSI else self.ioapic.pin(gsi))
        return Pin(*sinks, name=f"irq{number}")

    @property
    def lint1s(self) -> list[Callable[[bool], None]]:
        """The sinks of the NMI: LINT1 of every LAPIC."""
        return [self.irqchip.lint1s] if self.irqchip is not None else [lapic.lint1 for lapic in self.lapics]

    def virtual_wire(self) -> None:
        """Leave them as a PC's firmware does."""
        if self.irqchip is not None:
            self.irqchip.virtual_wire()
        else:
            self.lapics[0].virtual_wire()

    def reset(self) -> None:
        """Reset what `Machine.reset` does not reach: the 8259 pair, whose ports are on the bus and it is not."""
        if self._pic is not None:
            self._pic.reset()

    def _make_lapics(self, machine: Machine) -> tuple[Lapic, ...]:
        lapics = []
        for vcpu in machine.vcpus:
            lapic = Lapic(
                vcpu.index, vcpu, self.apic_bus, machine.clock, bsp=vcpu.index == 0, intack=self.acknowledge,
                tsc=vcpu.executor.tsc, x2apic=vcpu.executor.traps_msrs,
            )  # fmt: skip
            vcpu.controller = lapic
            lapic.attach(vcpu.mmio)
            lapics.append(lapic)
        return tuple(lapics)

    def _pic_output(self, level: bool) -> None:
        if self.irqchip is not None:
            self._extint.set(level)
        else:
            self.lapics[0].lint0(level)


class ExtInt:
    """An 8259's output as the controller of a CPU whose LAPIC the engine has: an `irq.Controller` without registers."""

    def __init__(self, vcpu: VCPU, intack: Callable[[], int | None]) -> None:
        self._vcpu = vcpu
        self._intack = intack
        self._level = False

    def set(self, level: bool) -> None:
        """The output is now `level`."""
        self._level = level
        if level:
            self._vcpu.interrupt()

    def pending(self) -> bool:
        return self._level

    def acknowledge(self) -> int | None:
        return self._intack()

    def init(self) -> None:
        """It has no registers."""

    def read_cr8(self) -> int:
        return 0

    def write_cr8(self, value: int) -> None:
        """The engine's LAPIC has the task priority."""

    def read_msr(self, index: int) -> int | None:
        return None

    def write_msr(self, index: int, value: int) -> bool:
        return False


def _device(chip: _Chip | None, name: str) -> _Chip:
    if chip is None:
        raise NoSuchDeviceError(f"there is no device for the {name}: the engine has it, with its LAPICs")
    return chip
