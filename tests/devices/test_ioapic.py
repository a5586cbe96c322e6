"""The I/O APIC (82093AA datasheet), alone and with local APICs behind it."""

from __future__ import annotations

import pytest
from apic_rig import Rig
from hypothesis import given
from hypothesis import strategies as st

from iobus.devices import ioapic as io
from iobus.devices import lapic_registers as r
from iobus.devices.ioapic import IoApic
from iobus.irq import ApicBus, DeliveryMode, Message, Pin
from iobus.state import StateError

LEVEL, MASKED, ACTIVE_LOW, REMOTE_IRR = 1 << 15, 1 << 16, 1 << 13, 1 << 14


class Board(Rig):
    """LAPICs and an IOAPIC on one APIC bus."""

    def __init__(self, cpus: int = 1, *, x2apic: bool = False) -> None:
        super().__init__(cpus, x2apic=x2apic)
        self.ioapic = IoApic(self.apic_bus)
        self.sent: list[Message] = []
        send = self.apic_bus.send

        def spy(message: Message) -> bool:
            self.sent.append(message)
            return send(message)

        self.apic_bus.send = spy  # type: ignore[method-assign]

    def select(self, register: int) -> int:
        self.ioapic.write(io.IOREGSEL, 4, register)
        return self.ioapic.read(io.IOWIN, 4)

    def store(self, register: int, value: int) -> None:
        self.ioapic.write(io.IOREGSEL, 4, register)
        self.ioapic.write(io.IOWIN, 4, value)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        self.store(0x11 + 2 * pin, destination << 24)
        self.store(0x10 + 2 * pin, low)

    def entry(self, pin: int) -> int:
        return self.select(0x10 + 2 * pin)

    def pulse(self, pin: int) -> None:
        self.ioapic.set_pin(pin, True)
        self.ioapic.set_pin(pin, False)

    def serve(self) -> int | None:
        """The CPU takes one interrupt and ends it."""
        vector = self.lapic.acknowledge()
        self.put(r.EOI, 0)
        return vector


# Registers.


def test_power_on_state() -> None:
    """Section 3.2.4: every entry is masked, all else zero."""
    board = Board()
    for pin in range(24):
        assert board.entry(pin) == MASKED and board.select(0x11 + 2 * pin) == 0


def test_version_is_read_only_and_counts_the_entries() -> None:
    """Section 3.2.2: bits 16-23 hold the highest entry; 0x20 has the EOI register."""
    board = Board()
    assert board.select(1) == 0x00170020
    board.store(1, 0xFFFFFFFF)
    assert board.select(1) == 0x00170020


def test_id_has_bits_24_to_27_and_the_arbitration_id_follows_it() -> None:
    """Sections 3.2.1 and 3.2.3: the arbitration ID is loaded with the ID and cannot be written."""
    board = Board()
    board.store(0, 0xFFFFFFFF)
    assert board.select(0) == 0x0F000000 and board.select(2) == 0x0F000000
    board.store(2, 0)
    assert board.select(2) == 0x0F000000
    board.ioapic.reset()
    assert board.select(0) == 0
    assert IoApic(ApicBus(), apic_id=5).read(io.IOWIN, 4) == 5 << 24


def test_an_entrys_read_only_and_reserved_bits() -> None:
    """Section 3.2.4: delivery status, Remote IRR and reserved bits cannot be set."""
    board = Board()
    board.store(0x13, 0xFFFFFFFF)
    board.store(0x12, 0xFFFFFFFF)
    assert board.select(0x12) == 0x0001AFFF and board.select(0x13) == 0xFF000000


def test_reserved_registers_read_zero_and_ignore_writes() -> None:
    board = Board()
    before = board.ioapic.save()["redirection"]
    for register in (3, 0xF, 0x40, 0xFF):
        board.store(register, 0xFFFFFFFF)
        assert board.select(register) == 0
    for offset in (0x04, 0x20, 0x40, 0x400):
        assert board.ioapic.read(offset, 4) == 0
    assert board.ioapic.save()["redirection"] == before


def test_access_sizes() -> None:
    """IOREGSEL's 8 bits may be written alone; IOWIN takes 32 bits; reads give the register's bytes."""
    board = Board()
    board.ioapic.write(io.IOREGSEL, 1, 1)
    assert [board.ioapic.read(io.IOWIN + at, 1) for at in range(4)] == [0x20, 0, 0x17, 0]
    assert board.ioapic.read(io.IOWIN + 2, 2) == 0x17 and board.ioapic.read(io.IOWIN, 8) == 0x00170020
    board.ioapic.write(io.IOREGSEL, 4, 0)
    board.ioapic.write(io.IOWIN, 2, 0xFFFF)
    board.ioapic.write(io.IOWIN, 1, 0xFF)
    assert board.ioapic.read(io.IOWIN, 4) == 0


# Edge.


def test_an_edge_is_one_interrupt() -> None:
    """Trigger mode 0: each rising edge sends; level and falling edge do not."""
    board = Board()
    board.route(14, 0x76)
    board.ioapic.set_pin(14, True)
    assert board.taken() == [0x76]
    board.ioapic.set_pin(14, False)
    assert board.taken() == [] and board.eois == []
    board.pulse(14)
    assert board.taken() == [0x76]
    assert board.sent[0] == Message(0, False, DeliveryMode.FIXED, 0x76)


def test_an_edge_while_masked_is_lost() -> None:
    """Section 3.2.4, bit 16: edge-sensitive interrupts signalled on a masked pin are ignored."""
    board = Board()
    board.route(14, MASKED | 0x81)
    board.pulse(14)
    board.ioapic.set_pin(14, True)
    board.route(14, 0x81)
    assert board.taken() == []
    board.ioapic.set_pin(14, False)
    board.ioapic.set_pin(14, True)
    assert board.taken() == [0x81]


@pytest.mark.parametrize("trigger", [0, LEVEL])
def test_polarity_reads_back_and_has_no_effect(trigger: int) -> None:
    """A line says asserted, not high: a pin that a guest takes for active-low interrupts when it is asserted."""
    board = Board()
    board.route(14, trigger | ACTIVE_LOW | 0x76)
    assert board.entry(14) == trigger | ACTIVE_LOW | 0x76 and board.taken() == [], "idle, whatever the polarity"
    board.ioapic.set_pin(14, True)
    assert board.lapic.acknowledge() == 0x76
    board.ioapic.set_pin(14, False)
    board.put(r.EOI, 0)
    assert board.taken() == []


def test_simultaneous_edges_are_served_by_priority() -> None:
    """The LAPIC orders what waits by vector, not by arrival."""
    board = Board()
    board.route(14, 0x78)
    board.route(15, 0x66)
    board.pulse(15)
    board.pulse(14)
    assert board.taken() == [0x78, 0x66]


# Level, with a LAPIC.


def test_level_sets_remote_irr_until_the_eoi() -> None:
    """Section 3.2.4, bit 14; the LAPIC's TMR marks it and its EOI comes back."""
    board = Board()
    board.route(14, LEVEL | 0x77)
    board.ioapic.set_pin(14, True)
    assert board.entry(14) == LEVEL | REMOTE_IRR | 0x77
    assert board.get(r.TMR + 0x30) == 1 << 0x17
    assert board.lapic.acknowledge() == 0x77
    board.ioapic.set_pin(14, False)
    assert board.entry(14) & REMOTE_IRR
    board.put(r.EOI, 0)
    assert board.entry(14) == LEVEL | 0x77 and board.taken() == []


def test_level_is_delivered_again_while_asserted() -> None:
    """After the EOI of a handler that did not quiet its device."""
    board = Board()
    board.route(14, LEVEL | 0x9A)
    board.ioapic.set_pin(14, True)
    assert board.serve() == 0x9A
    assert board.lapic.pending() and board.lapic.acknowledge() == 0x9A
    board.ioapic.set_pin(14, False)
    board.put(r.EOI, 0)
    assert board.taken() == [] and len(board.sent) == 2


def test_level_changes_during_service_coalesce() -> None:
    """Down and up again before the EOI, then down: no second interrupt. A new assertion after it is one."""
    board = Board()
    board.route(14, LEVEL | 0x98)
    board.ioapic.set_pin(14, True)
    assert board.lapic.acknowledge() == 0x98
    for level in (False, True, False):
        board.ioapic.set_pin(14, level)
    board.put(r.EOI, 0)
    assert board.taken() == []
    board.ioapic.set_pin(14, True)
    assert board.lapic.pending()


def test_masked_level_waits_for_the_unmask() -> None:
    """A level is not lost: the entry's write finds the pin still asserted."""
    board = Board()
    board.route(14, LEVEL | MASKED | 0x82)
    board.ioapic.set_pin(14, True)
    assert board.taken() == []
    board.store(0x10 + 28, LEVEL | 0x82)
    assert board.lapic.pending()


def test_masking_in_the_handler_holds_the_next_back() -> None:
    """Masked at the EOI: Remote IRR clears, nothing is sent until the unmask."""
    board = Board()
    board.route(14, LEVEL | 0x83)
    board.ioapic.set_pin(14, True)
    assert board.lapic.acknowledge() == 0x83
    board.store(0x10 + 28, LEVEL | MASKED | 0x83)
    assert board.entry(14) & REMOTE_IRR
    board.put(r.EOI, 0)
    assert board.taken() == [] and board.entry(14) == LEVEL | MASKED | 0x83
    board.store(0x10 + 28, LEVEL | 0x83)
    assert board.lapic.acknowledge() == 0x83


def test_an_eoi_ends_only_its_own_vector() -> None:
    board = Board()
    board.route(14, LEVEL | 0x77)
    board.route(15, LEVEL | 0x87)
    board.ioapic.set_pin(14, True)
    board.ioapic.set_pin(15, True)
    assert board.lapic.acknowledge() == 0x87
    board.ioapic.set_pin(15, False)
    board.put(r.EOI, 0)
    assert board.entry(14) & REMOTE_IRR and not board.entry(15) & REMOTE_IRR
    assert len(board.sent) == 2


def test_reconfigured_in_service_the_eoi_still_ends_it() -> None:
    """A new destination does not detach the interrupt under way."""
    board = Board(2)
    board.route(14, LEVEL | 0x84)
    board.ioapic.set_pin(14, True)
    assert board.lapic.acknowledge() == 0x84
    board.ioapic.set_pin(14, False)
    board.store(0x11 + 28, 1 << 24)
    assert board.entry(14) & REMOTE_IRR
    board.put(r.EOI, 0)
    assert not board.entry(14) & REMOTE_IRR
    board.ioapic.set_pin(14, True)
    assert board.receivers() == [1]


def test_switching_to_edge_clears_remote_irr() -> None:
    """What drivers do to end an interrupt by hand."""
    board = Board()
    board.route(14, LEVEL | 0x77)
    board.ioapic.set_pin(14, True)
    board.store(0x10 + 28, MASKED | 0x77)
    assert board.entry(14) == MASKED | 0x77
    board.store(0x10 + 28, LEVEL | MASKED | 0x77)
    assert not board.entry(14) & REMOTE_IRR


def test_the_eoi_register_ends_an_interrupt_whose_broadcast_is_suppressed() -> None:
    """Version 0x20: a write of the vector at offset 0x40."""
    board = Board()
    board.put(r.SVR, 0x11FF)
    board.route(14, LEVEL | 0x77)
    board.ioapic.set_pin(14, True)
    assert board.serve() == 0x77
    board.ioapic.set_pin(14, False)
    assert board.entry(14) & REMOTE_IRR
    board.ioapic.write(io.EOI, 4, 0x77)
    assert not board.entry(14) & REMOTE_IRR


def test_tpr_orders_delivery() -> None:
    """Accepted by the LAPIC (Remote IRR is set) but held until the task priority is below."""
    board = Board()
    board.put(r.TPR, 0x80)
    board.route(3, LEVEL | 0x7F)
    board.route(4, 0x91)
    board.ioapic.set_pin(3, True)
    board.pulse(4)
    assert board.entry(3) & REMOTE_IRR
    assert board.serve() == 0x91 and not board.lapic.pending()
    board.put(r.TPR, 0x60)
    assert board.lapic.acknowledge() == 0x7F


def test_a_level_that_nobody_takes_reads_send_pending() -> None:
    """Section 3.2.4, bit 12; the entry's next write tries again."""
    board = Board()
    board.route(14, LEVEL | 0x77, destination=9)
    board.ioapic.set_pin(14, True)
    assert board.entry(14) == LEVEL | 1 << 12 | 0x77
    board.store(0x11 + 28, 0)
    assert board.entry(14) == LEVEL | REMOTE_IRR | 0x77


# Destinations and delivery modes.


def test_physical_and_logical_destinations() -> None:
    """Bit 11: the high byte is an APIC ID or a mask of logical IDs."""
    board = Board(4)
    for cpu in range(4):
        board.put(r.LDR, 1 << cpu << 24, cpu)
    board.route(14, LEVEL | 0x85, destination=1)
    board.ioapic.set_pin(14, True)
    assert board.receivers()[:1] == [1]
    board.ioapic.set_pin(14, False)
    board.put(r.EOI, 0, 1)
    board.route(15, 0x0800 | 0x86, destination=0b1101)
    board.pulse(15)
    assert [cpu for cpu, lapic in enumerate(board.lapics) if lapic.state.irr >> 0x86 & 1] == [0, 2, 3]


def test_each_eoi_of_a_broadcast_level_ends_it() -> None:
    """Level to three LAPICs, the device quiet after the first: three handlers, no more."""
    board = Board(4)
    for cpu in range(4):
        board.put(r.LDR, 1 << cpu << 24, cpu)
    board.route(14, LEVEL | 0x0800 | 0x86, destination=0b1101)
    board.ioapic.set_pin(14, True)
    board.ioapic.set_pin(14, False)
    assert board.receivers() == [0, 2, 3] and board.receivers() == []


def test_lowest_priority_picks_one() -> None:
    """Delivery mode 1."""
    board = Board(2)
    for cpu in range(2):
        board.put(r.LDR, 1 << cpu << 24, cpu)
    board.put(r.TPR, 0x30)
    board.route(14, 0x0900 | 0x61, destination=0b11)
    board.pulse(14)
    assert board.receivers() == [1]


@pytest.mark.parametrize(("mode", "event"), [(0x400, "nmi"), (0x500, "init")])
def test_nmi_and_init_are_edges_even_when_programmed_as_level(mode: int, event: str) -> None:
    """Section 3.2.4, bits 8-10: one event an edge, no Remote IRR."""
    board = Board()
    board.route(14, LEVEL | mode)
    board.pulse(14)
    assert board.cpu.events == [event] and board.entry(14) == LEVEL | mode


def test_pin_0_as_extint_takes_the_8259s_vector() -> None:
    """The 8259 behind the IOAPIC: the message makes the CPU run the INTA cycle."""
    board = Board()
    board.put(r.LVT_LINT0, MASKED)
    board.route(0, 0x700)
    board.pic.vectors = [0x21]
    board.ioapic.pin(0)(True)
    assert board.lapic.pending() and board.lapic.acknowledge() == 0x21
    assert not board.lapic.pending()


@pytest.mark.parametrize("mode", [0x300, 0x600])
def test_reserved_delivery_modes_send_nothing(mode: int) -> None:
    board = Board()
    board.route(14, mode | 0x55)
    board.pulse(14)
    assert board.sent == []


def test_a_shared_pin_is_one_interrupt_until_all_lines_are_low() -> None:
    """Through `irq.Pin`: two devices on a level-sensitive pin."""
    board = Board()
    pin = Pin(board.ioapic.pin(10))
    one, other = pin.line("one"), pin.line("other")
    board.route(10, LEVEL | 0x55)
    one.set(True)
    other.set(True)
    assert board.lapic.acknowledge() == 0x55
    one.set(False)
    board.put(r.EOI, 0)
    assert board.lapic.acknowledge() == 0x55
    other.set(False)
    board.put(r.EOI, 0)
    assert not board.lapic.pending()


# State.


def test_reset_masks_everything_and_keeps_the_pins_levels() -> None:
    board = Board()
    board.route(14, LEVEL | 0x77)
    board.ioapic.set_pin(14, True)
    board.ioapic.reset()
    assert board.entry(14) == MASKED
    board.put(r.EOI, 0)
    board.store(0x10 + 28, LEVEL | 0x77)
    assert board.lapic.pending()


def test_saved_data_of_another_size_is_refused() -> None:
    plain = IoApic(ApicBus(), pins=16).save()
    with pytest.raises(StateError, match="16 entries, want 24"):
        IoApic(ApicBus()).restore(plain)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(0, 0xFF8), st.sampled_from((1, 2, 4, 8))),
            st.tuples(st.just("read"), st.just(0x10), st.just(4)),
            st.tuples(st.just("write"), st.integers(0, 0xFF8), st.sampled_from((1, 2, 4, 8)), st.integers(0)),
            st.tuples(st.just("write"), st.just(0x00), st.just(4), st.integers(0, 0x50)),
            st.tuples(st.just("write"), st.just(0x10), st.just(4), st.integers(0, 0x1FFFF)),
            st.tuples(st.just("set_pin"), st.integers(0, 23), st.booleans()),
            st.tuples(st.just("eoi"), st.integers(0, 255)),
        ),
        max_size=40,
    )
)
def test_no_sequence_of_accesses_raises_and_the_state_is_complete(steps: list[tuple]) -> None:
    """Any accesses and pin changes: nothing raises, values fit, and a restored IOAPIC saves the same."""
    board = Board(2)
    for what, *args in steps:
        if what == "read":
            assert 0 <= board.ioapic.read(*args) < 1 << 8 * args[1]
        elif what == "write":
            board.ioapic.write(args[0], args[1], args[2] & (1 << 8 * args[1]) - 1)
        else:
            getattr(board.ioapic, what)(*args)
    other = Board(2)
    other.ioapic.restore(board.ioapic.save())
    assert other.ioapic.save() == board.ioapic.save()


# Who must know a message before it is sent.


def test_each_change_of_an_entry_is_told_before_its_message() -> None:
    """A bus is told of what a pin sends as the guest makes it so: unmasked, changed, masked; before a waiting level."""
    board = Board()
    told: list[object] = []
    board.apic_bus.route = lambda pin, message: told.append((pin, message))  # type: ignore[method-assign]
    board.apic_bus.send = lambda message: told.append(message) or True  # type: ignore[method-assign, func-returns-value]
    board.ioapic.set_pin(5, True)
    board.route(5, LEVEL | 0x61, destination=3)
    message = Message(3, False, DeliveryMode.FIXED, 0x61, True)
    assert told == [(5, None), (5, message), message]
    told.clear()
    board.store(0x10 + 2 * 5, MASKED | 0x61)
    assert told == [(5, None)]
    told.clear()
    board.ioapic.reset()
    assert told == [(pin, None) for pin in range(24)]


def test_a_masked_entry_is_told_of_until_its_eoi() -> None:
    """Who passes EOIs on by what is routed must know of an interrupt under way, though its handler masks the entry."""
    board = Board()
    told: list[tuple[int, Message | None]] = []
    board.apic_bus.route = lambda pin, message: told.append((pin, message))  # type: ignore[method-assign]
    board.route(14, LEVEL | 0x77)
    board.ioapic.set_pin(14, True)
    board.lapic.acknowledge()
    board.route(14, MASKED | LEVEL | 0x77)
    assert told[-1] == (14, Message(0, False, DeliveryMode.FIXED, 0x77, True))
    board.put(r.EOI, 0)
    assert told[-1] == (14, None)
