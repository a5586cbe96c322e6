"""What the APIC tests share: CPUs with their LAPICs on one APIC bus, on a stepped clock."""

from __future__ import annotations

from iobus.bus import Bus
from iobus.clock import SteppedClock
from iobus.devices import lapic_registers as r
from iobus.devices.lapic import Lapic
from iobus.irq import ApicBus, DeliveryMode, Message


class Cpu:
    """A processor that writes down what its LAPIC does to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.interrupts = 0

    def interrupt(self) -> None:
        self.interrupts += 1

    def nmi(self) -> None:
        self.events.append("nmi")

    def init(self) -> None:
        self.events.append("init")

    def startup(self, vector: int) -> None:
        self.events.append(f"startup {vector:#x}")


class Tsc:
    """A time-stamp counter of 2 GHz."""

    def __init__(self, clock: SteppedClock) -> None:
        self.clock = clock

    def read(self) -> int:
        return 2 * self.clock.now()

    def deadline(self, tsc: int) -> int:
        return -(-tsc // 2)


class Pic:
    """An 8259 as the LAPIC sees it: one INTA cycle after the other."""

    def __init__(self) -> None:
        self.vectors: list[int] = []

    def intack(self) -> int | None:
        return self.vectors.pop(0) if self.vectors else None


class Rig:
    """CPUs with their LAPICs on one APIC bus, each with a vCPU bus; `eois` collects what IOAPICs would hear."""

    def __init__(self, cpus: int = 1, *, x2apic: bool = False, tsc: bool = True, wired: bool = True) -> None:
        self.clock = SteppedClock()
        self.apic_bus = ApicBus()
        self.eois: list[int] = []
        self.apic_bus.on_eoi(self.eois.append)
        self.pic = Pic()
        self.cpus = [Cpu() for _ in range(cpus)]
        self.lapics = [
            Lapic(
                number, cpu, self.apic_bus, self.clock, bsp=number == 0, intack=self.pic.intack,
                tsc=Tsc(self.clock) if tsc else None, x2apic=x2apic,
            )
            for number, cpu in enumerate(self.cpus)
        ]  # fmt: skip
        self.buses = [Bus() for _ in range(cpus)]
        for lapic, bus in zip(self.lapics, self.buses, strict=True):
            lapic.attach(bus)
            if wired:
                lapic.virtual_wire()
        self.lapic, self.cpu, self.bus = self.lapics[0], self.cpus[0], self.buses[0]

    def get(self, register: int, cpu: int = 0) -> int:
        return self.lapics[cpu].read(register, 4)

    def put(self, register: int, value: int, cpu: int = 0) -> None:
        self.lapics[cpu].write(register, 4, value)

    def ipi(self, low: int, destination: int = 0, cpu: int = 0) -> None:
        self.put(r.ICR_HIGH, destination << 24, cpu)
        self.put(r.ICR_LOW, low, cpu)

    def fixed(self, vector: int, *, level: bool = False, destination: int = 0) -> bool:
        return self.apic_bus.send(Message(destination, False, DeliveryMode.FIXED, vector, level))

    def taken(self) -> list[int | None]:
        """The first CPU acknowledges and ends all that is pending."""
        vectors = []
        while self.lapic.pending():
            vectors.append(self.lapic.acknowledge())
            self.put(r.EOI, 0)
        return vectors

    def receivers(self) -> list[int]:
        """The CPUs that have an interrupt pending, which is then dropped."""
        found = [number for number, lapic in enumerate(self.lapics) if lapic.pending()]
        for number in found:
            self.lapics[number].acknowledge()
            self.put(r.EOI, 0, number)
        return found
