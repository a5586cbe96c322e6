"""An example device that moves: what is written to BASE is where it is from then on, as a PCI device's BAR has it."""

from iobus.bus import Region
from iobus.registers import RW, R, Register, RegisterBank, on_write


class Identity(Register, rest=R):
    """Reads 0x10B05."""


class Base(Register, rest=RW):
    """Its own physical address, a multiple of its 4096 bytes."""


class Nomad(RegisterBank, length=0x1000):
    ID = Identity(0x0, reset=0x10B05)
    BASE = Base(0x4)

    def placed(self, region: Region) -> None:
        """Have the region, once the device is attached."""
        self.region = region
        self.BASE.value = region.base

    @on_write(BASE)
    def move(self, old: int) -> None:
        self.BASE.value &= -0x1000
        self.region.move(self.BASE.value)
