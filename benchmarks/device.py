"""The devices that are accessed: the register device of docs/tutorial.md, and the least there can be."""

from __future__ import annotations

from iobus.bus import Device

SCRATCH = 4


class MyDevice(Device):
    """The tutorial's: ID at 0, SCRATCH at 4, READS at 8, each 32 bits wide."""

    scratch = 0
    reads = 0

    def read(self, offset: int, size: int) -> int:
        if size != 4:
            return NotImplemented  # type: ignore[no-any-return]
        if offset == 0:
            self.reads += 1
        return {0: 0x10B05, 4: self.scratch, 8: self.reads}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (4, 4):
            self.scratch = value


class LeastDevice(Device):
    """Does nothing, so that a call of it is the least a call can cost."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass
