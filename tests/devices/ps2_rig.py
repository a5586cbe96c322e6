"""A keyboard controller with its pins, as a driver sees it."""

from __future__ import annotations

from iobus.clock import SteppedClock
from iobus.devices.i8042 import I8042
from iobus.irq import Pin

OBF, SYS, CMD, AUXB = 0x01, 0x04, 0x08, 0x20
TRANSLATED, RAW = 0x47, 0x07  # command bytes with both interrupts on


class Board:
    def __init__(self) -> None:
        self.resets = 0
        self.irq1: list[bool] = []
        self.irq12: list[bool] = []
        self.keyboard_pin = Pin(self.irq1.append)
        self.mouse_pin = Pin(self.irq12.append)
        self.clock = SteppedClock()
        self.kbc = I8042(self.keyboard_pin.line("keyboard"), self.mouse_pin.line("mouse"), self.reset, self.clock)

    def reset(self) -> None:
        self.resets += 1

    def status(self) -> int:
        return self.kbc.command.read(0, 1)

    def read(self) -> int:
        return self.kbc.data.read(0, 1)

    def command(self, command: int, *data: int) -> None:
        self.kbc.command.write(0, 1, command)
        for byte in data:
            self.data(byte)

    def data(self, *data: int) -> None:
        for byte in data:
            self.kbc.data.write(0, 1, byte)

    def mouse(self, *data: int) -> None:
        for byte in data:
            self.command(0xD4, byte)

    def drain(self) -> list[int]:
        """All that is to be read, keyboard's and mouse's."""
        data = []
        while self.status() & OBF:
            data.append(self.read())
        return data

    def ask(self, command: int, *data: int) -> int:
        self.command(command, *data)
        assert self.status() & OBF
        return self.read()
