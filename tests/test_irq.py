"""Interrupt lines and pins, MSI decoding, and the APIC bus."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iobus.irq import ApicBus, DeliveryMode, Gate, Message, Pin


def pin_with_log() -> tuple[Pin, list[bool]]:
    log: list[bool] = []
    return Pin(log.append, name="IRQ5"), log


def test_a_line_drives_its_pin() -> None:
    """The pin follows its line, and its sinks hear of each change once."""
    pin, log = pin_with_log()
    line = pin.line("uart")
    assert not pin.level and not line.level
    line.set(True)
    line.set(True)
    assert pin.level and line.level and log == [True]
    line.set(False)
    line.set(False)
    assert not pin.level and log == [True, False]


def test_lines_of_one_pin_are_wired_or() -> None:
    """A shared pin is high while any of its lines is: one device's deassertion does not hide another's."""
    pin, log = pin_with_log()
    first, second = pin.line(), pin.line()
    first.set(True)
    second.set(True)
    first.set(False)
    assert pin.level and log == [True]
    first.set(True)
    second.set(False)
    assert pin.level and log == [True]
    first.set(False)
    assert not pin.level and log == [True, False]


def test_a_pulse_is_one_edge() -> None:
    """`pulse` asserts and deasserts; on a pin that another line holds high it shows nothing."""
    pin, log = pin_with_log()
    pin.line().pulse()
    assert log == [True, False]
    holder = pin.line()
    holder.set(True)
    pin.line().pulse()
    assert pin.level and log == [True, False, True]


def test_a_pulse_of_a_line_that_is_high_ends_low() -> None:
    """An edge-triggered source's pulse is complete: it leaves the line low."""
    pin, log = pin_with_log()
    line = pin.line()
    line.set(True)
    line.pulse()
    assert not pin.level and log == [True, False]


def test_a_gate_passes_its_source_on_while_it_is_open() -> None:
    """Closed it holds the line low; opened it shows the level that the source has by then."""
    pin, log = pin_with_log()
    gate = Gate(pin.line())
    source = Pin(gate).line()
    source.set(True)
    gate.open(False)
    assert log == [True, False]
    source.set(False)
    source.pulse()
    gate.open(True)
    assert log == [True, False]
    gate.open(False)
    source.set(True)
    gate.open(True)
    assert log == [True, False, True]


def test_every_sink_hears_of_a_change() -> None:
    """One pin may go to an 8259 and to an IOAPIC; both see the same levels in order."""
    log: list[tuple[str, bool]] = []
    pin = Pin(lambda level: log.append(("pic", level)), lambda level: log.append(("ioapic", level)))
    pin.line().pulse()
    assert log == [("pic", True), ("ioapic", True), ("pic", False), ("ioapic", False)]


def test_lines_are_named() -> None:
    """A line is named for its device, else for its pin."""
    pin, _ = pin_with_log()
    assert pin.line("uart").name == "uart"
    line = pin.line()
    assert repr(line) == "<Line 'IRQ5' low>"
    line.set(True)
    assert repr(line) == "<Line 'IRQ5' high>"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_a_pin_is_the_or_of_its_lines(changes: list[tuple[int, bool]]) -> None:
    """After any sequence the level is the OR, and the sinks heard exactly its changes, alternating."""
    pin, log = pin_with_log()
    lines = [pin.line() for _ in range(4)]
    expected: list[bool] = []
    for index, level in changes:
        lines[index].set(level)
        now = any(line.level for line in lines)
        if now != (expected[-1] if expected else False):
            expected.append(now)
        assert pin.level == now and log == expected


# MSI (SDM vol. 3A, 11.11: figures 11-24 and 11-25).


def test_an_msi_is_decoded() -> None:
    """Destination in address bits 12-19; vector, delivery mode and trigger mode in the data."""
    message = Message.from_msi(0xFEE0_0000 | 0x12 << 12, 0x4041)
    assert message == Message(0x12, False, DeliveryMode.FIXED, 0x41)
    message = Message.from_msi(0xFEEF_F000, 0x8000 | 0x4000 | 4 << 8 | 2)
    assert message == Message(0xFF, False, DeliveryMode.NMI, 2, level_triggered=True)


def test_the_destination_mode_of_an_msi() -> None:
    """Address bit 2 makes the destination logical, with the redirection hint or without: Linux sends it without."""
    for hint in (0, 8):
        for logical in (0, 4):
            message = Message.from_msi(0xFEE0_1000 | hint | logical, 0x31)
            assert message is not None and message.logical == bool(logical) and message.destination == 1


def test_the_redirection_hint_asks_for_the_lowest_priority() -> None:
    """Address bit 3 sends a fixed interrupt to the CPU of the lowest priority among those addressed."""
    for address, data, mode in (
        (0xFEE0_F00C, 0x31, DeliveryMode.LOWEST_PRIORITY),
        (0xFEE0_F004, 0x31, DeliveryMode.FIXED),
        (0xFEE0_F004, 0x131, DeliveryMode.LOWEST_PRIORITY),
        (0xFEE0_F00C, 0x431, DeliveryMode.NMI),
    ):
        message = Message.from_msi(address, data)
        assert message is not None and message.mode is mode


@pytest.mark.parametrize("address", [0, 0xFED0_0000, 0xFEF0_0000, 0x1_FEE0_0000])
def test_a_write_elsewhere_is_no_msi(address: int) -> None:
    """Only 0xFEExxxxx is the APICs' range."""
    assert Message.from_msi(address, 0x31) is None


def test_the_reserved_delivery_modes_are_no_messages() -> None:
    """Encodings 3 and 6 are reserved: nothing is delivered, and so no start-up either; all others decode."""
    assert [mode for mode in range(8) if Message.from_msi(0xFEE0_0000, mode << 8) is None] == [3, 6]


@pytest.mark.parametrize(("data", "asserted"), [(0x0031, True), (0x4031, True), (0x8031, False), (0xC031, True)])
def test_only_a_level_is_deasserted(data: int, asserted: bool) -> None:
    """Data bit 14 tells assert from deassert where bit 15 says level; for an edge it is a don't-care."""
    message = Message.from_msi(0xFEE0_0000, data)
    assert message is not None and message.asserted is asserted
    assert message.level_triggered == bool(data & 0x8000)


# The APIC bus.


class Lapic:
    def __init__(self, ids: set[int], priority: int = 0, arbitration_id: int = 0) -> None:
        self.ids, self.priority, self.arbitration_id = ids, priority, arbitration_id
        self.focus: set[int] = set()
        self.taken: list[Message] = []

    def matches(self, message: Message) -> bool:
        return message.destination in self.ids

    def accept(self, message: Message) -> None:
        self.taken.append(message)

    def is_focus(self, vector: int) -> bool:
        return vector in self.focus

    def arbitration_priority(self) -> int:
        return self.priority


def test_a_message_reaches_every_lapic_it_addresses() -> None:
    """`send` tells whether anybody took it; a broadcast is taken by all."""
    bus, lapics = ApicBus(), [Lapic({0, 0xFF}), Lapic({1, 0xFF})]
    for lapic in lapics:
        bus.attach(lapic)
    one, all_, none = (Message(to, False, DeliveryMode.FIXED, 0x31) for to in (1, 0xFF, 7))
    assert bus.send(one) and bus.send(all_)
    assert not bus.send(none)
    assert [lapic.taken for lapic in lapics] == [[all_], [one, all_]]


LOWEST = Message(8, True, DeliveryMode.LOWEST_PRIORITY, 0x31, level_triggered=True)


def test_lowest_priority_goes_to_one_lapic_as_fixed() -> None:
    """Of those addressed the one whose processor priority is lowest takes it; none where none is addressed."""
    bus = ApicBus()
    outside, high, low = Lapic({1}, 0), Lapic({8}, 0x50, 2), Lapic({8}, 0x20, 1)
    for lapic in (outside, high, low):
        bus.attach(lapic)
    assert bus.send(LOWEST)
    assert low.taken == [LOWEST._replace(mode=DeliveryMode.FIXED)]
    assert not (outside.taken or high.taken)
    low.priority = 0x60
    assert bus.send(LOWEST)
    assert len(high.taken) == 1
    assert not bus.send(LOWEST._replace(destination=9))


def test_the_focus_processor_takes_it_whatever_its_priority() -> None:
    """SDM 11.6.2.4: who has the vector waiting or in service accepts it, and nobody's turn is used up."""
    bus = ApicBus()
    low, focus = Lapic({8}, 0, 1), Lapic({8}, 0xF0, 0)
    focus.focus = {0x31}
    for lapic in (low, focus):
        bus.attach(lapic)
    assert bus.send(LOWEST) and len(focus.taken) == 1 and not low.taken
    assert (low.arbitration_id, focus.arbitration_id) == (1, 0)
    assert bus.send(LOWEST._replace(vector=0x32)) and len(low.taken) == 1


def test_equals_take_turns() -> None:
    """Among equal priorities the highest arbitration ID wins and becomes the lowest: no two have the same."""
    bus, lapics = ApicBus(), [Lapic({8}, 0x20, number) for number in range(4)]
    busy = Lapic({8}, 0x80, 4)
    for lapic in (*lapics, busy):
        bus.attach(lapic)
    order = []
    for _ in range(8):
        before = [len(lapic.taken) for lapic in lapics]
        assert bus.send(LOWEST)
        order += [n for n in range(4) if len(lapics[n].taken) > before[n]]
        assert sorted(lapic.arbitration_id for lapic in (*lapics, busy)) == [0, 1, 2, 3, 4]
    assert order == [3, 2, 1, 0, 3, 2, 1, 0] and not busy.taken


def test_a_memory_write_is_an_msi_or_nothing() -> None:
    """`msi` sends what decodes as a message and tells whether somebody took it; any other address is dropped."""
    bus, lapic = ApicBus(), Lapic({2})
    bus.attach(lapic)
    assert bus.msi(0xFEE0_2000, 0x31) and lapic.taken == [Message(2, False, DeliveryMode.FIXED, 0x31)]
    assert not bus.msi(0xFEE0_3000, 0x31) and not bus.msi(0x1000, 0x31) and not bus.msi(0xFEE0_2000, 0x331)
    assert len(lapic.taken) == 1


def test_eois_reach_every_listener() -> None:
    """Each IOAPIC hears of the EOI of a level-triggered vector, and compares it itself."""
    bus, heard = ApicBus(), []
    bus.on_eoi(lambda vector: heard.append((1, vector)))
    bus.on_eoi(lambda vector: heard.append((2, vector)))
    bus.eoi(0x41)
    assert heard == [(1, 0x41), (2, 0x41)]


def test_what_intercepts_a_pin_decides_what_it_sees() -> None:
    """Changes of the lines go to `intercept` in place of the pin, and through `change` on to it, also later."""
    levels: list[bool] = []
    pin = Pin(levels.append)
    line = pin.line("a")
    held: list[bool] = []
    pin.intercept = held.append
    line.set(True)
    assert (line.level, pin.level, pin.count, held, levels) == (True, False, 0, [True], [])
    pin.change(held.pop())
    pin.intercept = None
    assert (pin.level, pin.count, levels) == (True, 1, [True])
    line.set(False)
    assert (pin.level, levels) == (False, [True, False])


def test_a_line_that_is_removed() -> None:
    """It lets go of its pin, and what its device does with it afterwards changes nothing."""
    seen: list[bool] = []
    pin = Pin(seen.append)
    kept, gone = pin.line("kept"), pin.line("gone")
    gone.set(True)
    pin.remove(gone)
    assert seen == [True, False] and pin.sources == ["kept"]
    gone.pulse()
    kept.set(True)
    assert seen == [True, False, True] and pin.count == 2


def test_who_listens_for_a_time() -> None:
    """A sink that comes later is told of changes until it is ignored."""
    seen: list[bool] = []
    pin, sink = Pin(), seen.append
    line = pin.line()
    pin.listen(sink)
    line.pulse()
    pin.ignore(sink)
    line.pulse()
    assert seen == [True, False]
