"""An example device whose registers come from SystemRDL: `gpio.rdl` says what they are, this file what they do."""

from pathlib import Path

from iobus.irq import Pin
from iobus.pc.pc import Pc
from iobus.registers import from_systemrdl, on_write


class Gpio(from_systemrdl(Path(__file__).with_name("gpio.rdl"))):
    def __init__(self) -> None:
        self.irq = Pin().line()  # until a machine gives it one

    def connect(self, pc: Pc) -> None:
        self.irq = pc.irq(10, "gpio")

    @on_write("COMMAND.ALL")
    def set_all(self, value: int) -> None:
        if value:
            self.OUTPUT.PINS = 0xFF

    @on_write("COMMAND.NONE")
    def clear_all(self, value: int) -> None:
        if value:
            self.OUTPUT.PINS = 0

    def drive(self, pins: int) -> None:
        """The world outside: set the level of the pins that are inputs."""
        inputs = pins & ~self.DIRECTION.PINS
        self.RISEN.PINS |= inputs & ~self.INPUT.PINS
        self.INPUT.PINS = inputs | self.INPUT.PINS & self.DIRECTION.PINS
        self.update()

    def update(self) -> None:
        out = self.DIRECTION.PINS
        self.INPUT.PINS = self.INPUT.PINS & ~out | self.OUTPUT.PINS & out
        self.irq.set(bool(self.RISEN.PINS & self.ENABLE.PINS))
