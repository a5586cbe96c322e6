"""Interrupts: pins and the lines that drive them, APIC messages, and what a vCPU asks of its controller.

Near the ground: imports only `doorbell.py`. A device holds a `Line` and knows nothing of what is behind
it. Everything here is called with the machine lock held (see `machine.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

from iobus.doorbell import Event


class Line:
    """A device's end of an interrupt pin. Levels, not edges: a controller makes edges of them."""

    __slots__ = ("_pin", "level", "name")

    def __init__(self, pin: Pin, name: str) -> None:
        self._pin = pin
        self.name = name
        self.level = False
        """Whether this source asserts the pin. Read it; change it with `set`."""

    def __repr__(self) -> str:
        return f"<Line {self.name!r} {'high' if self.level else 'low'}>"

    def set(self, level: bool) -> None:
        """Assert (`True`) or deassert the line; setting the level it has does nothing."""
        if level != self.level:
            self.level = level
            (self._pin.intercept or self._pin.change)(level)

    def pulse(self) -> None:
        """Assert and deassert: one edge."""
        self.set(True)
        self.set(False)


class Pin:
    """An interrupt input: high while any of its lines is. Tells its sinks each change of the level."""

    def __init__(self, *sinks: Callable[[bool], None], name: str = "") -> None:
        self.name = name
        self.lines: list[Line] = []
        """Its sources."""
        self.count = 0
        """How often it has gone from low to high."""
        self.intercept: Callable[[bool], None] | None = None
        """Called with each change of a line in its place, where it is set: it tells `change`, at once, later or never.

        It is how a test loses or delays an interrupt.
        """
        self._sinks = sinks
        self._asserted = 0

    @property
    def sources(self) -> list[str]:
        """The names of its lines."""
        return [line.name for line in self.lines]

    @property
    def level(self) -> bool:
        """Whether some line asserts the pin."""
        return self._asserted > 0

    def line(self, name: str = "") -> Line:
        """Return a new source of this pin, low."""
        line = Line(self, name or self.name)
        self.lines.append(line)
        return line

    def remove(self, line: Line) -> None:
        """Let go of one of its lines: it is deasserted, and what is done to it from then on reaches nobody."""
        if line.level:
            line.level = False
            self.change(False)
        self.lines.remove(line)
        line._pin = _NOWHERE

    def listen(self, sink: Callable[[bool], None]) -> None:
        """Tell `sink` too each change of the level, until `ignore`."""
        self._sinks += (sink,)

    def ignore(self, sink: Callable[[bool], None]) -> None:
        """Tell `sink` no more."""
        self._sinks = tuple(other for other in self._sinks if other is not sink)

    def change(self, level: bool) -> None:
        """One line more (`True`) or less asserts the pin. Lines call it."""
        before = self._asserted
        self._asserted += 1 if level else -1
        if (before > 0) != (self._asserted > 0):
            self.count += level
            for sink in self._sinks:
                sink(level)


_NOWHERE = Pin(name="nowhere")
"""What a removed line drives."""


class Gate:
    """A switch between a source and its line: a sink for a `Pin` that passes the level on while it is open."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._level = False
        self._open = True

    def __call__(self, level: bool) -> None:
        self._level = level
        self._line.set(level and self._open)

    def open(self, on: bool) -> None:
        """Pass the source's level on (`True`), from now on, or hold the line low."""
        self._open = on
        self._line.set(self._level and on)


class DeliveryMode(enum.IntEnum):
    """How an APIC message acts on its CPU (Intel SDM vol. 3A, sections 11.5.1 and 11.6.1)."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


_NOT_IN_AN_MSI = (3, DeliveryMode.STARTUP)  # reserved encodings


class Message(NamedTuple):
    """One interrupt message on the APIC bus, from an IOAPIC, an MSI or a LAPIC's ICR."""

    destination: int
    """APIC ID, or logical destination when `logical`; 8 bits, 32 from an x2APIC."""
    logical: bool
    mode: DeliveryMode
    vector: int
    level_triggered: bool = False
    asserted: bool = True
    """False for the INIT level de-assert, and a level-triggered MSI's deassertion: neither interrupts."""

    @classmethod
    def from_msi(cls, address: int, data: int) -> Message | None:
        """Decode an MSI write of `data` to `address` (SDM vol. 3A, section 11.11); None if it is none.

        With a level trigger, bit 14 of the data tells assert from deassert; an edge has no such thing.
        """
        mode = data >> 8 & 7
        if address >> 20 != 0xFEE or mode in _NOT_IN_AN_MSI:
            return None
        mode = DeliveryMode(mode)
        if address & 8 and mode is DeliveryMode.FIXED:  # the redirection hint
            mode = DeliveryMode.LOWEST_PRIORITY
        # The SDM lets a CPU ignore the destination mode without the hint; Linux relies on that none does.
        logical = bool(address & 4)
        level = bool(data & 1 << 15)
        return cls(address >> 12 & 0xFF, logical, mode, data & 0xFF, level, not level or bool(data & 1 << 14))


class Processor(Protocol):
    """What a LAPIC can do to its own CPU."""

    def interrupt(self) -> None:
        """Look at the controller again: `pending` may have become true."""

    def nmi(self) -> None:
        """Deliver a non-maskable interrupt."""

    def init(self) -> None:
        """Return to the INIT state and wait for a start-up message."""

    def startup(self, vector: int) -> None:
        """Leave the INIT state at address `vector << 12`; ignored outside it."""


class Controller(Protocol):
    """What a vCPU asks of its interrupt controller (a LAPIC with the 8259 behind it, or only one)."""

    def pending(self) -> bool:
        """Whether an interrupt would be delivered, were the CPU to accept one now."""

    def acknowledge(self) -> int | None:
        """The CPU accepts: return the vector (0-255) to enter, or None where it went away."""

    def init(self) -> None:
        """The CPU has come to take an INIT, which the controller has taken before: forget what it did meanwhile."""

    def read_cr8(self) -> int:
        """The task priority, 0-15."""

    def write_cr8(self, value: int) -> None:
        """Set the task priority, 0-15."""

    def read_msr(self, index: int) -> int | None:
        """The value of an MSR that is the controller's; None where RDMSR faults (#GP)."""

    def write_msr(self, index: int, value: int) -> bool:
        """Write an MSR that is the controller's; False where WRMSR faults (#GP)."""


class Irqchip(Protocol):
    """Interrupt controllers that an engine has itself, in place of devices: the LAPICs of all vCPUs at least."""

    whole: bool
    """Whether the IOAPIC, the 8259 pair and the 8254 with port 0x61 are the engine's too."""

    apic_bus: ApicBus
    """Reaches the LAPICs, and tells of the EOIs that an IOAPIC outside waits for."""

    def set_line(self, number: int, level: bool) -> None:
        """Interrupt line `number` of the PC is now `level`. Where the engine has them all."""

    def take_event(self, number: int, event: Event, watch: Callable[[bool], None]) -> None:
        """Make each ring of `event` an edge at interrupt line `number` of the PC, where and while the engine can.

        `watch(on)` is told, with the machine lock held, whether its caller must see to the rings from now on.
        """

    def lint1s(self, level: bool) -> None:
        """LINT1 of every LAPIC is now `level`."""

    def open_pit(self, on: bool) -> None:
        """Let the 8254's output to its line (`True`), or keep it from there. Where the engine has them all."""

    def virtual_wire(self) -> None:
        """Leave the first LAPIC as a PC's firmware does: enabled, LINT0 the 8259's interrupts, LINT1 the NMI."""


class ApicClient(Protocol):
    """A LAPIC as the APIC bus sees it."""

    def matches(self, message: Message) -> bool:
        """Whether the message's destination addresses this LAPIC."""

    def accept(self, message: Message) -> None:
        """Take the message, of any mode but `LOWEST_PRIORITY`, which comes as `FIXED`."""

    def is_focus(self, vector: int) -> bool:
        """Whether it takes a lowest-priority `vector` whatever its priority: it has it waiting or in service."""

    def arbitration_priority(self) -> int:
        """The processor priority that lowest-priority delivery compares (lower wins)."""

    arbitration_id: int
    """What decides among equals (higher wins)."""


class ApicBus:
    """Carries messages to the LAPICs, from each other, IOAPICs and MSIs, and EOIs back to the IOAPICs."""

    def __init__(self) -> None:
        self._lapics: list[ApicClient] = []
        self._eoi_listeners: list[Callable[[int], None]] = []

    def attach(self, lapic: ApicClient) -> None:
        """Let `lapic` receive messages."""
        self._lapics.append(lapic)

    def on_eoi(self, listener: Callable[[int], None]) -> None:
        """Call `listener(vector)` at the EOI of each level-triggered interrupt."""
        self._eoi_listeners.append(listener)

    def route(self, pin: int, message: Message | None) -> None:
        """From now on an IOAPIC sends `message` for `pin`, or nothing. For who must know before it is sent."""

    def eoi(self, vector: int) -> None:
        """A LAPIC ended the service of a level-triggered `vector`."""
        for listener in self._eoi_listeners:
            listener(vector)

    def send(self, message: Message) -> bool:
        """Deliver `message`; return whether any LAPIC took it."""
        targets = [lapic for lapic in self._lapics if lapic.matches(message)]
        if message.mode is DeliveryMode.LOWEST_PRIORITY and targets:
            targets = [self._arbitrate(targets, message.vector)]
            message = message._replace(mode=DeliveryMode.FIXED)
        for lapic in targets:
            lapic.accept(message)
        return bool(targets)

    def msi(self, address: int, data: int) -> bool:
        """Take a device's memory write of 32 bits; return whether it was an MSI that some LAPIC took."""
        message = Message.from_msi(address, data)
        return message is not None and self.send(message)

    def _arbitrate(self, targets: list[ApicClient], vector: int) -> ApicClient:
        """Lowest-priority delivery (SDM vol. 3A, section 11.6.2.4): the focus processor, or the lowest priority.

        Among equals the highest arbitration ID wins. Who has won becomes the lowest and those below it
        move up, so that equals take turns.
        """
        for lapic in targets:
            if lapic.is_focus(vector):
                return lapic
        winner = min(targets, key=lambda lapic: (lapic.arbitration_priority(), -lapic.arbitration_id))
        for lapic in self._lapics:
            if lapic.arbitration_id < winner.arbitration_id:
                lapic.arbitration_id += 1
        winner.arbitration_id = 0
        return winner
