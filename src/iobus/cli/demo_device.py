"""The device of `iobus demo`: three registers, 32 bits wide. Also the smallest example of a device."""

from iobus.bus import Device


class DemoDevice(Device):
    """ID at 0 (read-only), SCRATCH at 4, the count of reads at 8 (read-only)."""

    name = "demo"
    length = 0x1000

    def __init__(self) -> None:
        self.scratch = 0
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return {0: 0x10B05, 4: self.scratch, 8: self.reads}.get(offset, 0) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 4:
            self.scratch = value
