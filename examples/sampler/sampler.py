"""An example device: a FIFO of samples. `sampler.c` is its Linux driver, with a bug that one fault finds."""

from collections import deque

from iobus.bus import Device


class Sampler(Device):
    """COUNT at 0: how many samples wait. DATA at 4: takes the next one."""

    length = 0x1000

    def __init__(self) -> None:
        self.samples: deque[int] = deque()

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return len(self.samples)
        return self.samples.popleft() if offset == 4 and self.samples else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing is written."""
