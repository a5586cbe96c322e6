"""An example device that hosts others: an I2C controller, and a thermometer on its bus.

A target of I2C has an address of 7 bits, and most have registers of a byte that are numbered by a byte. So the child
bus is a `Bus` of 15 bits, on which a target claims 256 addresses: who answers, and that nobody does, is the bus's.
"""

from iobus.bus import Bus, Device
from iobus.registers import RW, RW1C, Field, Register, RegisterBank, W, bits, on_write


class Target(Register):
    ADDRESS = Field(bits(6, 0), RW, "Of whom")
    REGISTER = Field(bits(15, 8), RW, "Which of its registers")


class Command(Register):
    READ = Field(0, W, "Writing 1 reads the register into DATA")
    WRITE = Field(1, W, "Writing 1 writes DATA to it")


class Data(Register):
    BYTE = Field(bits(7, 0), RW)


class Status(Register):
    NACK = Field(0, RW1C, "Nobody answered")


class I2c(RegisterBank, length=0x1000):
    TARGET = Target(0x0)
    COMMAND = Command(0x4)
    DATA = Data(0x8)
    STATUS = Status(0xC)

    def __init__(self) -> None:
        self.bus = Bus(1 << 15, name="i2c")
        self.buses = (self.bus,)  # a machine's reset goes on to who is there

    def add(self, target: Device, address: int) -> None:
        """Put a device on the bus, at an address of 7 bits."""
        self.bus.attach(target, address << 8, 256, sizes=(1,))

    @on_write(COMMAND.READ)
    def fetch(self, value: int) -> None:
        if value:
            answer = self.bus.read(self.where, 1)
            if answer is NotImplemented:
                self.STATUS.NACK = 1
            else:
                self.DATA.BYTE = answer

    @on_write(COMMAND.WRITE)
    def send(self, value: int) -> None:
        if value and self.bus.write(self.where, 1, self.DATA.BYTE) is NotImplemented:
            self.STATUS.NACK = 1

    @property
    def where(self) -> int:
        return self.TARGET.ADDRESS << 8 | self.TARGET.REGISTER


class Thermometer(Device):
    """Degrees Celsius in register 0, the limit of its alert in register 1; it has no others."""

    celsius = 21
    limit = 80

    def reset(self) -> None:
        self.limit = 80

    def read(self, offset: int, size: int) -> int:
        return {0: self.celsius, 1: self.limit}.get(offset, NotImplemented)

    def write(self, offset: int, size: int, value: int) -> object:
        if offset != 1:
            return NotImplemented
        self.limit = value
        return None
