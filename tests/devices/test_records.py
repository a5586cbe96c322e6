"""Saved states whose fields contradict each other, or the chip, are refused with a sentence that names them."""

from __future__ import annotations

from typing import Any

import pytest
from device_fuzz import Rig

from iobus.state import StateError

CASES: list[tuple[str, tuple[Any, ...], Any, str]] = [
    ("pit", ("counters", 2, "at_reload"), True, r"CounterState\.at_reload: a counter that has no count"),
    ("pit", ("counters", 0, "initial"), 65537, r"CounterState\.initial: got 0x10001, want 0x0 to 0x10000"),
    ("pic", ("slave", "lowest"), 8, r"ChipState\.lowest: got 0x8, want 0x0 to 0x7"),
    ("pic", ("master", "expect"), 5, r"ChipState\.expect: got 0x5, want 0x0 to 0x4"),
    ("rtc", ("data", 10), 256, r"RtcState\.data\[10\]: got 0x100, want 0x0 to 0xff"),
    ("uart", ("host_at",), 1, r"UartState\.host_at: 1 of 0 characters"),
    ("uart", ("rx",), [0] * 17, r"UartState\.rx: 17 entries, want 0 to 16"),
    ("ioapic", ("redirection", 3), 1 << 20, r"IoApicState\.redirection: 0x100000 has bits that cannot be set"),
    ("ioapic", ("id",), 16, r"IoApicState\.id: got 0x10, want 0x0 to 0xf"),
    ("lapic", ("irr",), 1 << 15, r"LapicState\.irr: 0x8000 has vectors below 16"),
    ("lapic", ("lvt", 3), 1 << 14, r"LapicState: 0x4000 is no value that the LVT register 0x360 can have"),
    ("lapic", ("timer", "lvt"), 1 << 8, r"LapicState: 0x100 is no value that the LVT register 0x320 can have"),
    ("lapic", ("apic_base",), 0xFEE00400, r"LapicState\.apic_base: 0xfee00400 is no value"),
    ("acpi_pm", ("tmr_half",), -1, r"AcpiPmState\.tmr_half: got -0x1"),
    ("reset_control", ("rst_cnt",), 0x10, r"ResetControlState\.rst_cnt: got 0x10, want 0x0 to 0xe"),
    ("system_control_a", ("port92",), 4, r"SystemControlAState\.port92: got 0x4, want 0x0 to 0x3"),
    ("system_control_b", ("control",), 16, r"SystemControlBState\.control: got 0x10, want 0x0 to 0xf"),
    ("i8042", ("status",), 0x02, r"I8042State\.status: 0x2 has more than OBF, CMD and AUXB"),
    ("i8042", ("answers",), [0x200], r"I8042State\.answers\[0\]: got 0x200, want 0x0 to 0x1ff"),
    ("i8042", ("keyboard", "held"), 0x80, r"KeyboardState\.held: 0x80 is no key's make code"),
    ("i8042", ("keyboard", "held"), 0x1E, r"KeyboardState: key 0x1e is held and repeats at None"),
    ("i8042", ("mouse", "last"), b"", r"MouseState\.last: 0 entries, want 1 to 5"),
    ("vga", ("graphics", 0), 0x10, r"VgaState\.graphics\[0\]: 0x10 has bits that cannot be set"),
    ("vga", ("dac",), b"\x40" + bytes(767), r"VgaState\.dac\[0\]: 0x40 has bits that cannot be set"),
    ("vga", ("memory",), bytes(5), r"VgaState\.memory: 5 entries, want 262144"),
    ("pci", ("config", "address"), 1 << 24, r"PciConfigState\.address: 0x1000000 has bits that cannot be set"),
    ("post", ("latches", 0), -1, r"PostState\.latches\[0\]: got -0x1"),
]


@pytest.mark.parametrize(("name", "path", "value", "message"), CASES)
def test_a_record_that_cannot_be_is_refused(name: str, path: tuple[Any, ...], value: Any, message: str) -> None:
    """The device stays as it was."""
    device = Rig(name).device
    before, plain = device.save(), device.save()
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(StateError, match=message):
        device.restore(plain)
    assert device.save() == before
