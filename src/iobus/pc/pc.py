"""The PC: which devices there are, where they answer, and how their interrupt lines run.

Stands above `machine.py` and `devices/`; `layout.py` has the addresses. Interrupt line n reaches the
8259 pair and the IOAPIC alike, as on a PC, and the guest chooses which of them it listens to; the 8259's
output goes to LINT0 of the first LAPIC. Nothing here knows how a guest gets in: see `iobus.boot`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from iobus.bus import Device, Region, RegistrationError
from iobus.clock import Clock
from iobus.devices.acpi_pm import AcpiPm
from iobus.devices.hpet import Hpet
from iobus.devices.i8042 import I8042
from iobus.devices.i8254 import Pit
from iobus.devices.i8259 import PicPair
from iobus.devices.ioapic import IoApic
from iobus.devices.post import Post
from iobus.devices.reset import ResetControl, SystemControlA
from iobus.devices.rtc import Rtc
from iobus.devices.system_control_b import SystemControlB
from iobus.devices.uart import Uart
from iobus.devices.vga import Vga
from iobus.devices.vga_screen import Screen
from iobus.doorbell import Event
from iobus.exits import PowerOffExit, ResetExit
from iobus.irq import Gate, Line, Pin
from iobus.machine import Engine, Machine, attach_told
from iobus.memory import PAGE_SIZE
from iobus.pc import acpi, bios_data, layout
from iobus.pc.firmware import FirmwareBoard
from iobus.pc.interrupts import PINS, Controllers, NoSuchDeviceError
from iobus.pc.keyboard import HostKeyboard

MINIMUM_MEMORY: Final = 1 << 20
"""RAM below this does not reach the BIOS area, where the ACPI tables lie."""
MAXIMUM_MEMORY: Final = 64 << 30


class Pc:
    """A PC with `memory` bytes of RAM on `engine` (or, with None, without a CPU).

    `console` gets what the guest writes to COM1. With `firmware`, a ROM image, the PC has a ROM, a PCI host bridge
    with shadow RAM, and starts as hardware does; without, where firmware would have left it. Raises `ValueError` for
    a memory size or a ROM that cannot be, `HostMemoryError` for RAM that the host has no room for.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        memory: int = 256 << 20,
        cpus: int = 1,
        clock: Clock | None = None,
        console: Callable[[bytes], None] = lambda _: None,
        firmware: bytes = b"",
    ) -> None:
        if not MINIMUM_MEMORY <= memory <= MAXIMUM_MEMORY or memory % PAGE_SIZE:
            raise ValueError(f"memory of {memory} bytes: a PC has 1 MiB to 64 GiB, in whole pages of 4096 bytes")
        self.memory_size: Final = memory
        """RAM in bytes."""
        self._acpi_devices: list[acpi.AcpiDevice] = []
        self._described = 0
        self.machine: Final = Machine(engine, cpus=cpus, clock=clock)
        machine = self.machine
        self.board: Final = FirmwareBoard(machine, firmware) if firmware else None
        self._add_ram(memory)
        self.controllers: Final = Controllers(machine)
        """The interrupt controllers, wherever they are."""
        self.apic_bus: Final = self.controllers.apic_bus
        self.lapics: Final = self.controllers.lapics
        """The LAPICs that are devices: none where the engine has them."""
        self.pins: Final = tuple(self.controllers.pin(number) for number in range(PINS))
        """The interrupt inputs by number; devices get theirs from `irq`."""

        reset = self._reset_from
        rtc_gate = Gate(self.irq(layout.IRQ_RTC, "rtc"))
        pit_gate = self._make_pit()
        self.uart: Final = Uart(self.irq(layout.IRQ_COM1, "com1"), machine.clock, console)
        # The NMI reaches LINT1 of every LAPIC, as the MADT says, unless port 0x70 masks it.
        nmi_gate = Gate(Pin(*self.controllers.lint1s, name="nmi").line())
        self._nmi = Pin(nmi_gate, name="nmi")
        self.rtc: Final = Rtc(
            machine.clock, Pin(rtc_gate).line("rtc"), mask_nmi=lambda masked: nmi_gate.open(not masked)
        )
        self.i8042: Final = I8042(
            self.irq(layout.IRQ_KEYBOARD, "keyboard"), self.irq(layout.IRQ_MOUSE, "mouse"), partial(reset, "i8042"),
            machine.clock,
        )  # fmt: skip
        self.keyboard: Final = HostKeyboard(self.i8042, machine)
        for index, value in bios_data.cmos(memory, cpus).items():
            self.rtc.set_cmos(index, value)
        self.acpi_pm: Final = AcpiPm(machine.clock, self.irq(layout.IRQ_SCI, "sci"), self._power_off)

        def replace(on: bool) -> None:
            """The HPET takes over the lines of the 8254 and the RTC, or gives them back."""
            pit_gate(not on)
            rtc_gate.open(not on)

        self.hpet: Final = Hpet(
            machine.clock,
            [{n: self.irq(n, f"hpet{timer}") for n in irqs} for timer, irqs in enumerate(layout.HPET_IRQS)],
            (self.irq(layout.IRQ_TIMER, "hpet0"), self.irq(layout.IRQ_RTC, "hpet1")),
            replace=replace, fsb=self.apic_bus.msi,
        )  # fmt: skip
        self.vga: Final = Vga(machine.clock)
        ports: list[tuple[Any, int, int]] = [
            (self.i8042.data, layout.I8042_DATA, 1),
            (self.i8042.command, layout.I8042_COMMAND, 1),
            (self.rtc, layout.RTC, 2),
            (Post(), layout.POST, 16),
            (SystemControlA(partial(reset, "port 0x92")), layout.SYSTEM_CONTROL_A, 1),
            (self.uart, layout.COM1, 8),
            (self.acpi_pm, layout.ACPI_PM, 12),
            (ResetControl(partial(reset, "port 0xcf9")), layout.RESET_CONTROL, 1),
        ]
        for device, base, length in ports:
            machine.pio.attach(device, base, length)
        machine.mmio.attach(self.hpet, layout.HPET)
        for part in self.vga.ports:
            machine.pio.attach(part, part.base, implements=(1,))
        machine.mmio.attach(self.vga.memory, layout.VGA_HOLE[0])
        self.power_on()

    @property
    def pic(self) -> PicPair:
        """The 8259 pair. Raises `NoSuchDeviceError` where the engine has it."""
        return self.controllers.pic

    @property
    def ioapic(self) -> IoApic:
        """The I/O APIC. Raises `NoSuchDeviceError` where the engine has it."""
        return self.controllers.ioapic

    @property
    def pit(self) -> Pit:
        """The 8254. Raises `NoSuchDeviceError` where the engine has it."""
        if self._pit is None:
            raise NoSuchDeviceError("there is no device for the 8254: the engine has it, with its LAPICs")
        return self._pit

    def irq(self, number: int, name: str = "") -> Line:
        """Return a new line of interrupt `number`: 0-15 are the ISA lines, 16-23 IOAPIC pins only."""
        if not 0 <= number < len(self.pins) or number == layout.TIMER_GSI:
            raise ValueError(f"interrupt {number}: use 0 to {len(self.pins) - 1}, but not {layout.TIMER_GSI}")
        return self.pins[number].line(name)

    def gsi(self, number: int, name: str = "") -> Line:
        """Return a new line of IOAPIC pin `number`, 0-23, and of the 8259 input that goes with it.

        As `irq` but for the timer: its line 0 is pin 2 here as there, and pin 2 alone is 2.
        """
        return self.pins[number].line(name)

    def irq_event(self, number: int, name: str = "") -> Event:
        """Return an event of which each ring is an edge at interrupt `number`: from any thread, or another process.

        For what works beside the machine, does not take its lock, and has an edge-triggered interrupt. Rings that come
        together may be one edge. Where KVM has the interrupt controllers (`split`, `kernel`) the kernel delivers it,
        by an irqfd. Raises `ValueError` as `irq`. It lasts as long as the machine.
        """
        line, event = self.irq(number, name), Event()
        machine, chip = self.machine, self.controllers.irqchip

        def watch(on: bool) -> None:
            if on:
                machine.watch(event, line.pulse)
            else:
                machine.unwatch(event)

        with machine.lock:
            if chip is None:
                watch(True)
            else:
                chip.take_event(number, event, watch)
        return event

    def nmi(self, name: str = "") -> Line:
        """Return a new line of the non-maskable interrupt: a watchdog's, or a button's.

        Its rising edge is the NMI, of each CPU whose LAPIC lets LINT1 through. A guest can mask it with bit 7
        of port 0x70; unmasking while the line is up makes the edge then.
        """
        return self._nmi.line(name)

    def attach(self, device: Device, base: int | None = None, length: int | None = None, **options: Any) -> Region:
        """Attach a user's device to the memory-mapped I/O bus, having told it of the machine; return its region.

        A device with a method `connect(pc)` gets this PC first: `pc.irq(n)`, `pc.machine.clock` and
        `pc.machine.dma(device)` are there for it; one with `placed(region)` gets its region then. Otherwise as
        `Bus.attach`.

        To be called before the guest starts. A device with an attribute `acpi_id`, such as "ABCD0001", is in the ACPI
        tables under that hardware ID, with its range and the interrupts it took in `connect`.
        """
        before = self.lines()
        region = attach_told(self, self.machine.mmio, device, base, length, options)
        try:
            described = self.described(region, before)
        except ValueError as exc:
            region.detach()
            raise RegistrationError(f"{type(device).__name__}, with acpi_id: {exc}") from None
        if described is not None:
            self._acpi_devices.append(described)
            self._write_tables()
        return region

    def lines(self) -> set[Line]:
        """Return every line of every interrupt input."""
        return {line for pin in self.pins for line in pin.lines}

    def described(self, region: Region, before: set[Line]) -> acpi.AcpiDevice | None:
        """Return what a guest is told of the device at `region` by ACPI; None where it has no `acpi_id`.

        Its interrupts are those of the lines that were not there `before`. Raises `ValueError` for an ID that is none.
        """
        hid = getattr(region.device, "acpi_id", "")
        if not hid:
            return None
        if not isinstance(hid, str):
            raise ValueError(f'hardware ID {hid!r} is no text; give one such as "ABCD0001"')
        gsis = [
            layout.TIMER_GSI if number == layout.IRQ_TIMER else number
            for number, pin in enumerate(self.pins)
            if not before.issuperset(pin.lines)
        ]
        self._described += 1
        return acpi.user_device(self._described, hid, region.base, region.length, gsis)

    def power_on(self) -> None:
        """Put the machine where firmware leaves it: tables, virtual wire mode, text mode. RAM else as it is.

        With firmware of the guest's own: where that finds it, at the reset vector.
        """
        if self.board is not None:
            return
        self._write_tables()
        for address, data in bios_data.pieces():
            self.machine.memory.write(address, data)
        with self.machine.lock:
            self.controllers.virtual_wire()
            self.vga.text_mode()

    def reset(self) -> None:
        """Reset the machine and leave it as `power_on` does. It must not be running."""
        self.machine.reset()
        self.keyboard.clear()
        with self.machine.lock:
            self.controllers.reset()
        self.power_on()

    def type(self, data: bytes) -> None:
        """Give bytes to the guest's serial line, as if typed. From any thread."""
        with self.machine.lock:
            self.uart.receive(data)

    def screen(self) -> Screen:
        """Return what the guest's display shows. From any thread."""
        with self.machine.lock:
            return self.vga.screen()

    def _add_ram(self, size: int) -> None:
        low, high = layout.VGA_HOLE
        self.machine.memory.add(0, low)
        if self.board is not None:
            high = layout.BIOS_AREA_END  # the board has what lies between
        if size > high:
            self.machine.memory.add(high, min(size, layout.RAM_BELOW_4G) - high)
        if size > layout.RAM_BELOW_4G:
            self.machine.memory.add(1 << 32, size - layout.RAM_BELOW_4G)

    def _make_pit(self) -> Callable[[bool], None]:
        """Make the 8254 and port 0x61, unless the engine has them; return what lets its output to its line."""
        irqchip, machine = self.controllers.irqchip, self.machine
        self._pit: Pit | None = None
        if irqchip is not None and irqchip.whole:
            return irqchip.open_pit
        gate = Gate(self.irq(layout.IRQ_TIMER, "pit"))
        self._pit = Pit(machine.clock, Pin(gate).line("pit"))
        machine.pio.attach(self._pit, layout.PIT, 4)
        machine.pio.attach(SystemControlB(self._pit, machine.clock), layout.SYSTEM_CONTROL_B, 1)
        return gate.open

    def _write_tables(self) -> None:
        if self.board is None:
            tables = acpi.tables(len(self.machine.vcpus), extra_devices=self._acpi_devices)
            self.machine.memory.write(layout.ACPI_TABLES, tables)

    def _power_off(self) -> None:
        self.machine.stop(PowerOffExit())

    def _reset_from(self, source: str) -> None:
        self.machine.stop(ResetExit(source))
