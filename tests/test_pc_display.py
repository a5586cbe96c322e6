"""The VGA in the PC: where it answers, what firmware leaves, and `pc.screen()`. Without a CPU."""

from __future__ import annotations

from iobus.clock import SteppedClock
from iobus.devices.vga_screen import Cursor
from iobus.pc.pc import Pc


def pc_without_cpu() -> Pc:
    return Pc(memory=2 << 20, clock=SteppedClock())


def test_the_screen_is_what_the_guest_wrote() -> None:
    """Text at 0xB8000 by accesses of the bus, the cursor by words to the CRT controller, as drivers do it."""
    pc = pc_without_cpu()
    for index, char in enumerate(b"guest"):
        pc.machine.mmio.write(0xB8000 + 2 * index, 2, 0x0700 | char)
    pc.machine.pio.write(0x3D4, 2, 0x050F)
    screen = pc.screen()
    assert str(screen) == "guest"
    assert screen.cursor == Cursor(0, 5, 13, 14)


def test_a_reset_leaves_the_screen_that_firmware_does() -> None:
    """Text mode 3, cleared, whatever the guest had set."""
    pc = pc_without_cpu()
    before = pc.screen()
    pc.machine.mmio.write(0xB8000, 4, 0x07420741)
    pc.machine.pio.write(0x3D4, 2, 0x2F09)
    pc.machine.pio.write(0x3C2, 1, 0x00)
    assert pc.screen() != before
    pc.reset()
    assert pc.screen() == before
    assert pc.machine.mmio.read(0xB8000, 2) == 0x0720


def test_where_the_vga_is() -> None:
    """At its ports and in the hole of the RAM; the printer's ports between its own are nobody's."""
    pc = pc_without_cpu()
    for address in (0xA0000, 0xBFFFF):
        region = pc.machine.mmio.find(address)
        assert region is not None and region.name == "vga-memory"
        assert pc.machine.memory.find(address) is None
    for port, name in ((0x3B4, "vga-mono"), (0x3C0, "vga"), (0x3CF, "vga"), (0x3DA, "vga-colour")):
        region = pc.machine.pio.find(port)
        assert region is not None and region.name == name
    assert pc.machine.pio.find(0x3BC) is None
