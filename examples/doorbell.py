"""An example device: two registers and an interrupt. `docs/registers.md` builds it line by line."""

from iobus.irq import Pin
from iobus.pc.pc import Pc
from iobus.registers import RW, RW1C, Field, Register, RegisterBank, W, on_write


class Control(Register):
    RING = Field(0, W, "Writing 1 rings the bell")
    ENABLE = Field(1, RW, "The bell interrupts")


class Status(Register):
    RUNG = Field(0, RW1C, "The bell was rung")


class Doorbell(RegisterBank, length=0x1000):
    CTRL = Control(0x0)
    STATUS = Status(0x4)

    def __init__(self) -> None:
        self.irq = Pin().line()  # until a machine gives it one

    def connect(self, pc: Pc) -> None:
        self.irq = pc.irq(10, "doorbell")

    @on_write(CTRL.RING)
    def ring(self, value: int) -> None:
        self.STATUS.RUNG |= value

    def update(self) -> None:
        self.irq.set(bool(self.CTRL.ENABLE and self.STATUS.RUNG))
