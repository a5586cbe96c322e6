"""The I/O APIC: takes interrupt pins, sends messages to the local APICs.

Intel 82093AA datasheet; as in later I/O xAPICs (version 0x20, Intel ICH datasheets) physical destinations
have 8 bits and there is an EOI register. It knows `irq.ApicBus` and its pins' levels, nothing else.

An `irq.Line` says that an interrupt is asserted, not which voltage that is: whatever polarity a guest programs,
the board is taken to be wired for it. The bit reads back as written and has no effect, as in KVM (since
2014) and QEMU, which guests have come to rely on.

An edge that arrives while its entry is masked is lost. A level-sensitive pin is looked at again whenever its
entry is written and at each EOI. NMI, SMI, INIT and ExtINT are edge-triggered whatever the entry says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final

from iobus.bus import Device
from iobus.irq import ApicBus, DeliveryMode, Message
from iobus.state import U8, U64, Range, State, StateError, Stateful

# Registers in the page, by offset.
IOREGSEL: Final = 0x00
IOWIN: Final = 0x10
EOI: Final = 0x40

# Registers behind IOREGSEL. Pin n's entry is IOREDTBL + 2n (low half) and IOREDTBL + 2n + 1.
IOAPICID: Final = 0x00
IOAPICVER: Final = 0x01
IOAPICARB: Final = 0x02
IOREDTBL: Final = 0x10

LOGICAL: Final = 1 << 11
DELIVERY_STATUS: Final = 1 << 12
ACTIVE_LOW: Final = 1 << 13
REMOTE_IRR: Final = 1 << 14
LEVEL: Final = 1 << 15
MASKED: Final = 1 << 16

_LOW_WRITABLE = MASKED | LEVEL | ACTIVE_LOW | 0xFFF
_HIGH_WRITABLE = 0xFF000000
_ENTRY = _HIGH_WRITABLE << 32 | _LOW_WRITABLE | REMOTE_IRR
_RESERVED_MODES = (3, 6)


@dataclass
class IoApicState(State):
    """All the I/O APIC remembers, the levels at its pins included."""

    ioregsel: U8 = 0
    id: Annotated[int, Range(0, 15)] = 0
    redirection: list[U64] = field(default_factory=list)
    levels: list[bool] = field(default_factory=list)
    """Which pins are asserted."""

    def check(self) -> None:
        for entry in self.redirection:
            if entry & ~_ENTRY:
                raise StateError(f"IoApicState.redirection: {entry:#x} has bits that cannot be set")


class IoApic(Stateful, Device):
    """An I/O APIC of `pins` pins. `apic_id` is its ID until the guest writes another."""

    state: IoApicState

    name = "ioapic"
    length = 0x1000

    def __init__(self, apic_bus: ApicBus, *, apic_id: int = 0, pins: int = 24) -> None:
        self.pins: Final = pins
        self._apic_bus = apic_bus
        self._apic_id = apic_id & 0xF
        self.state = IoApicState(id=self._apic_id, redirection=[MASKED] * pins, levels=[False] * pins)
        apic_bus.on_eoi(self.eoi)

    def pin(self, number: int) -> Callable[[bool], None]:
        """Return the sink of pin `number`, for an `irq.Pin`."""
        return partial(self.set_pin, number)

    def set_pin(self, number: int, level: bool) -> None:
        """Pin `number` is now asserted or not."""
        state = self.state
        if level == state.levels[number]:
            return
        state.levels[number] = level
        if not level:
            return
        entry = state.redirection[number]
        if _is_level(entry):
            self._serve_level(number)
        elif not entry & MASKED:
            self._send(entry)

    def eoi(self, vector: int) -> None:
        """A LAPIC (or the EOI register) ended `vector`: clear Remote IRR, deliver again what is still asserted."""
        redirection = self.state.redirection
        for number, entry in enumerate(redirection):
            if entry & (REMOTE_IRR | 0xFF) == REMOTE_IRR | vector:
                redirection[number] = entry & ~REMOTE_IRR
                if entry & MASKED:
                    self._tell_route(number)
                self._serve_level(number)

    def reset(self) -> None:
        """Power-on state: every entry masked. The levels at the pins are their sources'."""
        self.state = IoApicState(id=self._apic_id, redirection=[MASKED] * self.pins, levels=self.state.levels)
        self.restored()

    def restore(self, plain: object) -> None:
        state = IoApicState.restore(plain)
        for what, entries in (("redirection", len(state.redirection)), ("levels", len(state.levels))):
            if entries != self.pins:
                raise StateError(f"IoApicState.{what}: {entries} entries, want {self.pins}")
        super().restore(plain)

    def restored(self) -> None:
        for number in range(self.pins):
            self._tell_route(number)

    # Accesses to the page. Reserved offsets and registers read zero and ignore writes. The registers are
    # 32 bits wide: narrower reads give their bytes, narrower writes select (IOREGSEL has 8 bits) but do
    # not write IOWIN, and 8-byte accesses act on the low half.

    def read(self, offset: int, size: int) -> int:
        within = offset & 3
        if within + size > 4 and (within or size != 8):
            return 0
        register = offset - within
        if register == IOREGSEL:
            value = self.state.ioregsel
        elif register == IOWIN:
            value = self._read_selected()
        else:
            return 0
        return value >> 8 * within & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == IOREGSEL:
            self.state.ioregsel = value & 0xFF
        elif size < 4:
            return
        elif offset == IOWIN:
            self._write_selected(value & 0xFFFFFFFF)
        elif offset == EOI:
            self.eoi(value & 0xFF)

    def _read_selected(self) -> int:
        state, register = self.state, self.state.ioregsel
        if register in (IOAPICID, IOAPICARB):  # the arbitration ID follows the ID
            return state.id << 24
        if register == IOAPICVER:
            return self.pins - 1 << 16 | 0x20
        number, high = register - IOREDTBL >> 1, register & 1
        if not 0 <= number < self.pins:
            return 0
        entry = state.redirection[number]
        if high:
            return entry >> 32
        # Asserted, let through, yet not at any LAPIC: none took the message.
        held_up = _is_level(entry) and not entry & (MASKED | REMOTE_IRR) and state.levels[number]
        return entry & 0xFFFFFFFF | (DELIVERY_STATUS if held_up else 0)

    def _write_selected(self, value: int) -> None:
        state, register = self.state, self.state.ioregsel
        if register == IOAPICID:
            state.id = value >> 24 & 0xF
        number, high = register - IOREDTBL >> 1, register & 1
        if not 0 <= number < self.pins:
            return
        entry = state.redirection[number]
        if high:
            entry = (value & _HIGH_WRITABLE) << 32 | entry & 0xFFFFFFFF
        else:
            entry = entry >> 32 << 32 | value & _LOW_WRITABLE | entry & REMOTE_IRR
            if not value & LEVEL:
                entry &= ~REMOTE_IRR
        state.redirection[number] = entry
        self._tell_route(number)
        self._serve_level(number)

    def _serve_level(self, number: int) -> None:
        """Send a level-sensitive entry's message if its pin is asserted and no earlier one is under way."""
        entry = self.state.redirection[number]
        if entry & (MASKED | REMOTE_IRR) or not _is_level(entry) or not self.state.levels[number]:
            return
        # Set before the LAPIC hears of it: its answer may be an EOI that clears it.
        self.state.redirection[number] = entry | REMOTE_IRR
        if not self._send(entry):
            self.state.redirection[number] = entry

    def _tell_route(self, number: int) -> None:
        """One that is masked still waits for the EOI of what it has sent."""
        entry = self.state.redirection[number]
        silent = entry & MASKED and not entry & REMOTE_IRR
        self._apic_bus.route(number, None if silent else _message(entry))

    def _send(self, entry: int) -> bool:
        message = _message(entry)
        return message is not None and self._apic_bus.send(message)


def _message(entry: int) -> Message | None:
    """What an entry sends; None for a reserved delivery mode."""
    code = entry >> 8 & 7
    if code in _RESERVED_MODES:
        return None
    return Message(entry >> 56, bool(entry & LOGICAL), DeliveryMode(code), entry & 0xFF, _is_level(entry))


def _is_level(entry: int) -> bool:
    return bool(entry & LEVEL) and entry >> 8 & 7 <= DeliveryMode.LOWEST_PRIORITY
