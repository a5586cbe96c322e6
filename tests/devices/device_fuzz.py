"""Any guest at any device: random accesses at a rig that has each device of the PC on a bus, one at a time.

`python tests/devices/device_fuzz.py 1000000 [seed]` makes that many accesses at each device, and at a whole PC.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from iobus.bus import SIZES, Bus
from iobus.clock import SteppedClock
from iobus.devices import lapic_registers as r
from iobus.devices.acpi_pm import AcpiPm
from iobus.devices.debug_console import DebugConsole
from iobus.devices.debug_exit import DebugExitPort, ShutdownPort
from iobus.devices.fw_cfg import FwCfg
from iobus.devices.hpet import Hpet
from iobus.devices.i440fx import BASE, PAM, HostBridge, Shadow
from iobus.devices.i8042 import I8042
from iobus.devices.i8254 import Pit
from iobus.devices.i8259 import PicPair
from iobus.devices.ioapic import IoApic
from iobus.devices.lapic import Lapic
from iobus.devices.pci import PciConfig
from iobus.devices.post import Post
from iobus.devices.reset import ResetControl, SystemControlA
from iobus.devices.rtc import Rtc
from iobus.devices.system_control_b import SystemControlB
from iobus.devices.test_device import EchoMemory, EchoPorts, LineSwitches
from iobus.devices.uart import Uart
from iobus.devices.vga import Vga
from iobus.irq import ApicBus, Pin
from iobus.machine import Machine
from iobus.memory import Memory
from iobus.pc import host_interface, layout
from iobus.pc.pc import Pc
from iobus.state import StateError


def some_time(rng: random.Random) -> int:
    """Some ns, now and then more than a second: timers of a microsecond have fired a million times by then."""
    return 1_100_000_000 if rng.random() < 0.01 else rng.choice((1, 100, 20_000, 1_000_000))


class Processor:
    """What a LAPIC needs of its CPU."""

    def interrupt(self) -> None: ...

    def nmi(self) -> None: ...

    def init(self) -> None: ...

    def startup(self, vector: int) -> None: ...


class Several:
    """Devices that work together, saved and restored as one."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def save(self) -> dict[str, Any]:
        return {name: part.save() for name, part in self.parts.items()}

    def restore(self, plain: Any) -> None:
        if not isinstance(plain, dict) or plain.keys() != self.parts.keys():
            raise StateError(f"want the states of {', '.join(self.parts)}")
        for name, part in self.parts.items():
            part.restore(plain[name])


class Rig:
    """One device, its accesses on a bus of its own, and what else may happen to it from outside."""

    def __init__(self, name: str) -> None:
        self.clock = SteppedClock()
        self.pins: list[Pin] = []
        self.bus = Bus()
        self.memory = Memory()
        self.name = name
        self.interesting: list[int] = []
        """Offsets that do more than others."""
        self.events: list[Callable[[random.Random], object]] = []
        self.device = getattr(self, f"_{name}")()
        self.bounds = [(region.base, region.length) for region in self.bus.regions]

    def levels(self) -> list[bool]:
        """The levels of the interrupt lines."""
        return [pin.level for pin in self.pins]

    def restored(self, saved: dict[str, Any]) -> Rig:
        """Return a fresh rig at this one's time with the state `saved`. Raises `StateError`."""
        other = Rig(self.name)
        other.clock.advance(self.clock.now())
        other.device.restore(saved)
        for slot in self.memory.slots:  # last: a device may have filled it anew
            other.memory.program(slot.base, self.memory.read(slot.base, slot.size))
        return other

    def step(self, rng: random.Random) -> None:
        """One access, or the passing of time, or something from outside. Raises `AssertionError` on a bad answer."""
        choice = rng.random()
        if choice < 0.1:
            self.clock.advance(some_time(rng))
        elif choice < 0.25 and self.events:
            rng.choice(self.events)(rng)
        else:
            base, length = rng.choice(self.bounds)
            size = rng.choice(SIZES)
            offset = rng.choice(self.interesting) if self.interesting and rng.random() < 0.6 else rng.randrange(length)
            value = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << rng.randrange(8 * size), rng.getrandbits(8 * size)))
            if rng.random() < 0.4:
                got = self.bus.read(base + offset, size)
                assert got is NotImplemented or (type(got) is int and 0 <= got < 1 << 8 * size), (offset, size, got)
            else:
                self.bus.write(base + offset, size, value)

    # The devices.

    def _line(self) -> Any:
        self.pins.append(Pin())
        return self.pins[-1].line()

    def _pulse(self, *sinks: Callable[[bool], None]) -> None:
        """Pins of the device's that others drive."""
        self.events.extend(lambda rng, sink=sink: sink(rng.random() < 0.5) for sink in sinks)

    def _hpet(self) -> Hpet:
        device = Hpet(
            self.clock, [{n: self._line() for n in (11, 20)} for _ in range(3)], (self._line(), self._line()),
            replace=lambda _: None, fsb=lambda *_: None,
        )  # fmt: skip
        self.bus.attach(device, 0)
        self.interesting = [0x10, 0x20, 0xF0, *range(0x100, 0x160, 8)]
        return device

    def _lapic(self) -> Lapic:
        pic = iter(lambda: 0x08, None)
        device = Lapic(0, Processor(), ApicBus(), self.clock, bsp=True, intack=lambda: next(pic), x2apic=True)
        device.attach(self.bus)
        device.virtual_wire()
        self.interesting = [r.SVR, r.EOI, r.TPR, r.ESR, r.ICR_LOW, r.INITIAL_COUNT, *r.LVT_WRITABLE]
        msrs = [r.IA32_APIC_BASE, r.IA32_TSC_DEADLINE, *range(0x800, 0x840)]
        bases = [0xFEE00900, 0xFEE00D00, 0xFEE00100]

        def write_msr(rng: random.Random) -> None:
            index = rng.choice(msrs)
            device.write_msr(index, rng.choice(bases) if index == r.IA32_APIC_BASE else rng.getrandbits(18))

        self.events += [lambda rng: device.read_msr(rng.choice(msrs)), write_msr, lambda _: device.acknowledge()]
        self.events += [lambda _: device.write_msr(r.IA32_APIC_BASE, 0xFEE00100), lambda _: device.virtual_wire()]
        self.events += [lambda _: device.write_msr(r.IA32_APIC_BASE, 0xFEE00900)]
        self.events += [lambda rng: device._apic_bus.msi(0xFEE00000 | rng.getrandbits(4), rng.getrandbits(16))]
        self._pulse(device.lint0, device.lint1)
        return device

    def _ioapic(self) -> IoApic:
        device = IoApic(ApicBus())
        self.bus.attach(device, 0)
        self.interesting = [0x00, 0x10, 0x40]
        self._pulse(*(device.pin(n) for n in range(24)))
        self.events += [lambda rng: device.write(0, 4, rng.randrange(0x10, 0x40))] * 12
        return device

    def _pic(self) -> PicPair:
        pin = self._line()
        device = PicPair(pin.set)
        for base, part in ((0x20, device.master), (0xA0, device.slave), (0x4D0, device.elcr)):
            self.bus.attach(part, base)
        self._pulse(*(lambda level, n=n: device.set_pin(n, level) for n in range(16)))
        self.events += [lambda _: device.acknowledge()] * 16

        def start(rng: random.Random) -> None:
            for chip, words in ((device.master, (0x11, 0x20, 4)), (device.slave, (0x11, 0x28, 2))):
                chip.write(0, 1, words[0])
                for word in (*words[1:], rng.choice((1, 3, 0x11, 0x13))):
                    chip.write(1, 1, word)

        self.events += [start] * 4
        return device

    def _pit(self) -> Pit:
        device = Pit(self.clock, self._line())
        self.bus.attach(device, 0)
        self.interesting = [0, 2, 3]
        self._pulse(device.gate2)
        return device

    def _rtc(self) -> Rtc:
        device = Rtc(self.clock, self._line(), wall_ns=lambda: 1_700_000_000_123_456_789)
        self.bus.attach(device, 0)
        self.events += [lambda rng: device.write(0, 1, rng.choice((0, 4, 5, 9, 0xA, 0xB, 0xC, 0x32)))] * 2
        return device

    def _acpi_pm(self) -> AcpiPm:
        device = AcpiPm(self.clock, self._line(), lambda: None)
        self.bus.attach(device, 0)
        self.events += [lambda _: device.press_power_button(), lambda _: self.clock.advance(600_000_000_000)]
        return device

    def _uart(self) -> Uart:
        device = Uart(self._line(), self.clock, lambda _: None)
        self.bus.attach(device, 0)

        def receive(rng: random.Random) -> None:
            if len(device.state.host) < 1000:  # it may wait for ever
                device.receive(rng.randbytes(rng.randrange(20)))

        self.events += [receive, lambda _: device.receive_break()]
        self.events += [lambda rng: device.set_modem_lines(cts=rng.random() < 0.5, ri=rng.random() < 0.5)]
        return device

    def _i8042(self) -> I8042:
        device = I8042(self._line(), self._line(), lambda: None, self.clock)
        self.bus.attach(device.data, 0x60)
        self.bus.attach(device.command, 0x64)
        self.events += [lambda rng: device.press(rng.randrange(1, 0x80)), lambda rng: device.move(rng.randrange(9), -3)]
        self.events += [lambda rng: device.release(rng.randrange(1, 0x80)), lambda _: device.move(0, 0, wheel=1)]
        self.events += [lambda _: device.command.write(0, 1, 0xD4), lambda _: device.set_buttons(back=True)]
        return device

    def _vga(self) -> Vga:
        device = Vga(self.clock)
        for part in device.ports:
            self.bus.attach(part, part.base, implements=(1,))
        self.bus.attach(device.memory, 0xA0000)
        device.text_mode()

        def set_register(rng: random.Random) -> None:
            self.bus.write(rng.choice((0x3C4, 0x3CE, 0x3D4, 0x3B4)), 2, rng.getrandbits(8) << 8 | rng.randrange(0x1A))

        self.events += [set_register] * 8 + [lambda _: device.screen(), lambda _: device.text_mode()]
        return device

    def _post(self) -> Post:
        device = Post()
        self.bus.attach(device, 0)
        return device

    def _reset_control(self) -> ResetControl:
        device = ResetControl(lambda: None)
        self.bus.attach(device, 0)
        return device

    def _system_control_a(self) -> SystemControlA:
        device = SystemControlA(lambda: None)
        self.bus.attach(device, 0)
        return device

    def _system_control_b(self) -> SystemControlB:
        device = SystemControlB(Pit(self.clock, self._line()), self.clock)
        self.bus.attach(device, 0)
        return device

    def _fw_cfg(self) -> FwCfg:
        self.memory.add(0, 0x10000)
        items = {5: b"\1\0", 0x8003: b"four"}
        device = FwCfg(self.memory, items, {"etc/e820": bytes(range(200)), "opt/empty": b""})
        self.bus.attach(device, 0)
        self.interesting = [0, 1, 4, 8]

        def ask(rng: random.Random) -> None:
            control = rng.choice((2, 4, 8, 0xA, 0x10, rng.getrandbits(5))) | rng.choice((0, 5, 0x19, 0x20, 0x21)) << 16
            length, address = rng.choice((0, 1, 64, 300, 1 << 32)) % (1 << 32), rng.choice((0x800, 0xFFF0, 1 << 40))
            self.memory.write(0x100, struct.pack(">IIQ", control, length, address))
            self.bus.write(4, 4, 0)
            self.bus.write(8, 4, int.from_bytes((0x100).to_bytes(4, "big"), "little"))

        self.events += [ask, lambda rng: self.bus.write(0, 2, rng.choice((0, 1, 5, 0x19, 0x20, 0x8003)))]
        return device

    def _pci(self) -> Several:
        shadow, config = Shadow(self.memory, b"\x5a" * 0x20000), PciConfig()
        bridge = HostBridge(shadow.set)
        config.attach(bridge, 0)
        self.bus.attach(shadow, BASE)
        self.bus.attach(config, 0xCF8)

        def pam(rng: random.Random) -> None:
            self.bus.write(0xCF8, 4, 0x80000000 | PAM & 0xFC | rng.choice((0, 4, 8, 0xA8, 0x800, 0x10000)))
            self.bus.write(0xCFC + rng.randrange(4), 1, rng.getrandbits(8))

        self.events += [pam] * 4
        return Several(config=config, bridge=bridge, shadow=shadow)

    def _debug_ports(self) -> Several:
        shutdown, echo = ShutdownPort(lambda: None), EchoPorts()
        for device in (DebugConsole(lambda _: None), DebugExitPort(lambda _: None), shutdown, echo):
            self.bus.attach(device, 16 * len(self.bus.regions), device.length)
        self.events += [lambda rng: self.bus.write(32, 1, rng.choice(b"Shutdown"))] * 4
        return Several(shutdown=shutdown, echo=echo)

    def _line_switches(self) -> LineSwitches:
        device = LineSwitches([self._line() for _ in range(24)])
        self.bus.attach(device, 0, device.length)
        return device

    def _echo_memory(self) -> EchoMemory:
        device = EchoMemory()
        self.bus.attach(device, 0)
        return device


NAMES = (
    "hpet", "lapic", "ioapic", "pic", "pit", "rtc", "acpi_pm", "uart", "i8042", "vga", "post", "reset_control",
    "system_control_a", "system_control_b", "fw_cfg", "pci", "debug_ports", "line_switches", "echo_memory",
)  # fmt: skip


def fuzz(name: str, accesses: int, seed: int, *, check_every: int = 1000) -> None:
    """Make `accesses` steps at the device `name`; now and then save it, restore it in a fresh one, and compare."""
    rng, rig = random.Random(f"{seed} {name}"), Rig(name)
    for number in range(1, accesses + 1):
        rig.step(rng)
        if not number % check_every or number == accesses:
            rig.clock.run_due()
            saved = rig.device.save()
            other = rig.restored(saved)
            assert other.device.save() == saved, f"{name}: the state restored is another one after {number} steps"
            assert other.levels() == rig.levels(), f"{name}: the lines restored are others after {number} steps"
            rng_of_both = rng.getrandbits(64)
            if name != "lapic":  # its neighbours on the APIC bus are not a part of it
                for one in (rig, other):
                    rng_of_one = random.Random(rng_of_both)
                    for _ in range(20):
                        one.step(rng_of_one)
                assert other.device.save() == rig.device.save(), f"{name}: the restored one goes another way"


# The whole machine.

PORTS = (
    0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xCF9,
    *range(0x3B4, 0x3BB), *range(0x3C0, 0x3DB), *range(0x3F8, 0x400), *range(0x600, 0x60C), 0xCF8, 0xCFC, 0xCFD,
    *range(0xE0, 0xEC), 0xF4, 0x402, *range(0x510, 0x51C), *range(0x2000, 0x2018), 0x8900,
)  # fmt: skip


def stateful(machine: Machine, pc: Pc) -> Iterator[Any]:
    """Every device of the PC that has a record."""
    seen: set[int] = set()
    functions = () if pc.board is None else pc.board.pci.functions
    for device in (*machine.devices(), pc.pic, pc.i8042, pc.vga, *functions):
        if hasattr(device, "save") and id(device) not in seen:
            seen.add(id(device))
            yield device


class WholePc:
    """A PC of two CPUs without an engine, accessed everywhere."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.pc = Pc(None, memory=2 << 20, cpus=2, clock=self.clock, firmware=bytes(0x20000))
        host_interface.attach(self.pc, lambda _: None)

    def states(self) -> list[dict[str, Any]]:
        return [device.save() for device in stateful(self.pc.machine, self.pc)]

    def step(self, rng: random.Random) -> None:
        machine, choice = self.pc.machine, rng.random()
        vcpu = rng.choice(machine.vcpus)
        if choice < 0.1:
            self.clock.advance(some_time(rng))
            return
        if choice < 0.2:
            lapic = self.pc.lapics[vcpu.index]
            lapic.acknowledge()
            lapic.write_msr(r.IA32_APIC_BASE, rng.choice((0xFEE00800, 0xFEE00000, 0xFEE00C00, 0x100800, 0xFED00800)))
            return
        is_port = choice < 0.6
        size = rng.choice((1, 2, 4) if is_port else SIZES)
        if is_port:
            address = rng.choice(PORTS) if rng.random() < 0.95 else rng.randrange(0x10000 - size)
        else:
            place = rng.choice(
                (
                    layout.LAPIC,
                    layout.IOAPIC,
                    layout.HPET,
                    0x100000,
                    0xA0000,
                    0xB8000,
                    BASE,
                    0xFF000000,
                    rng.getrandbits(40),
                )
            )
            address = place + rng.choice((0, 0x10, rng.randrange(0x400), rng.randrange(0x1000 - 8)))
        path = vcpu.pio_path if is_port else vcpu.mmio_path
        if rng.random() < 0.4:
            assert 0 <= path.read(address, size) < 1 << 8 * size
        else:
            path.write(address, size, rng.choice((0, (1 << 8 * size) - 1, rng.getrandbits(8 * size))))


def fuzz_pc(accesses: int, seed: int, *, check_every: int = 20_000) -> None:
    """As `fuzz`, of all devices of a PC at once, each CPU and the clock in turn."""
    rng, rig = random.Random(f"{seed} pc"), WholePc()
    for number in range(1, accesses + 1):
        rig.step(rng)
        if not number % check_every or number == accesses:
            rig.clock.run_due()
            saved, other = rig.states(), WholePc()
            other.clock.advance(rig.clock.now())
            for device, state in zip(stateful(other.pc.machine, other.pc), saved, strict=True):
                device.restore(state)
            assert other.states() == saved, f"the PC restored is another one after {number} steps"


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for which in (*NAMES, "pc"):
        begun = perf_counter()
        if which == "pc":
            fuzz_pc(count, first)
        else:
            fuzz(which, count, first)
        print(f"{which:18} {count} steps, seed {first}: {perf_counter() - begun:.1f} s", flush=True)
