"""An example device: it copies memory by DMA, takes its time, and interrupts. `copier.c` is its Linux driver.

Write the addresses and the length, then START. While it works BUSY is set; then it interrupts with DONE, or with ERROR
where the length is none that it takes.
"""

from iobus.irq import Pin
from iobus.pc.pc import Pc
from iobus.registers import RW, RW1C, Field, R, Register, RegisterBank, W, on_write

LONGEST = 1 << 20  # bytes


class Number(Register, rest=RW):
    """All of it is one number."""


class Address(Register, width=64, rest=RW):
    """A physical address."""


class Control(Register):
    START = Field(0, W, "Writing 1 starts a copy")
    ENABLE = Field(1, RW, "DONE and ERROR interrupt")


class Status(Register):
    DONE = Field(0, RW1C, "A copy is complete")
    ERROR = Field(1, RW1C, "A copy was refused")
    BUSY = Field(2, R, "A copy is going on")


class Copier(RegisterBank, length=0x1000):
    acpi_id = "IOBS0001"  # by which Linux finds the driver

    SOURCE = Address(0x00)
    TARGET = Address(0x08)
    LENGTH = Number(0x10)
    CTRL = Control(0x14)
    STATUS = Status(0x18)

    def __init__(self) -> None:
        self.irq = Pin().line()  # until a machine gives it one

    def connect(self, pc: Pc) -> None:
        self.irq = pc.irq(10, "copier")
        self.clock = pc.machine.clock
        self.dma = pc.machine.dma(self)
        self.timer = self.clock.timer(self.copy, "copier")

    @on_write(CTRL.START)
    def start(self, value: int) -> None:
        if not value or self.STATUS.BUSY:
            return
        if 0 < self.LENGTH.value <= LONGEST:
            self.STATUS.BUSY = 1
            self.timer.arm(self.clock.now() + self.LENGTH.value)  # a byte a nanosecond
        else:
            self.STATUS.ERROR = 1

    def copy(self) -> None:
        self.dma.write(self.TARGET.value, self.dma.read(self.SOURCE.value, self.LENGTH.value))
        self.STATUS.BUSY = 0
        self.STATUS.DONE = 1
        self.update()

    def update(self) -> None:
        self.irq.set(bool(self.CTRL.ENABLE and (self.STATUS.DONE or self.STATUS.ERROR)))
