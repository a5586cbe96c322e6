"""A VGA on the two buses of a PC, and what a test does to it: registers, memory, the beginning of a mode."""

from __future__ import annotations

from iobus.bus import Bus
from iobus.clock import SteppedClock
from iobus.devices.vga import Vga

HOLE = 0xA0000
TEXT = 0xB8000

SEQUENCER, GRAPHICS, CRTC, MONO_CRTC = 0x3C4, 0x3CE, 0x3D4, 0x3B4


class Board:
    """With the text mode that firmware leaves, unless `text` is False."""

    def __init__(self, text: bool = True) -> None:
        self.clock = SteppedClock()
        self.vga = Vga(self.clock)
        self.pio = Bus(0x10000)
        self.mmio = Bus()
        for part in self.vga.ports:
            self.pio.attach(part, part.base, implements=(1,))
        self.mmio.attach(self.vga.memory, HOLE)
        if text:
            self.vga.text_mode()

    def out(self, port: int, value: int, size: int = 1) -> object:
        return self.pio.write(port, size, value)

    def inb(self, port: int) -> int:
        value = self.pio.read(port, 1)
        assert isinstance(value, int), f"nothing answers port {port:#x}"
        return value

    def decodes(self, port: int) -> bool:
        return self.pio.read(port, 1) is not NotImplemented

    def set(self, index_port: int, index: int, value: int) -> None:
        """As guests do: one word, the index in its low byte."""
        self.out(index_port, value << 8 | index, 2)

    def get(self, index_port: int, index: int) -> int:
        self.out(index_port, index)
        return self.inb(index_port + 1)

    def set_attribute(self, index: int, value: int) -> None:
        """Both writes to port 0x3C0, from a known flip-flop; the display stays on."""
        self.inb(0x3DA)
        self.out(0x3C0, index | 0x20)
        self.out(0x3C0, value)

    def get_attribute(self, index: int) -> int:
        self.inb(0x3DA)
        self.out(0x3C0, index | 0x20)
        return self.inb(0x3C1)

    def poke(self, address: int, value: int, size: int = 1) -> object:
        return self.mmio.write(address, size, value)

    def peek(self, address: int, size: int = 1) -> int:
        value = self.mmio.read(address, size)
        assert isinstance(value, int), f"nothing answers {address:#x}"
        return value

    def planar(self, graphics_mode: int = 0) -> None:
        """Sequential addressing, all planes, 64 KiB at 0xA0000: as in the 16-colour graphics modes."""
        self.set(SEQUENCER, 2, 0x0F)
        self.set(SEQUENCER, 4, 0x06)
        self.set(GRAPHICS, 5, graphics_mode)
        self.set(GRAPHICS, 6, 0x05)

    def plane(self, plane: int, address: int) -> int:
        """A byte of a plane, whatever the registers say."""
        return self.vga.state.memory[4 * address + plane]

    def fill(self, address: int, *planes: int) -> None:
        self.vga.state.memory[4 * address : 4 * address + 4] = bytes(planes)

    def write(self, text: str, at: int = 0, attribute: int = 0x07) -> None:
        """Text as a guest writes it, from cell `at` of the window."""
        for index, code in enumerate(text.encode("cp437")):
            self.poke(TEXT + 2 * (at + index), attribute << 8 | code, 2)
