"""An example device: three registers, each 32 bits wide. `iobus demo` boots Linux against it.

| offset | name    | access | what it is |
|--------|---------|--------|------------|
| 0x0    | ID      | R      | identifies the device: 0x10B05 |
| 0x4    | SCRATCH | RW     | keeps what was written; 0 at power-on |
| 0x8    | READS   | R      | how often a register was read, this read included |

The rest of its 4096 bytes reads as zero and ignores writes. Put it on a bus of your own, from a checkout:

    iobus boot --device examples/scratch.py:Scratch@0xD0000000
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iobus.bus import Device
from iobus.state import State, Stateful

ID: Final = 0x0
SCRATCH: Final = 0x4
READS: Final = 0x8

IDENTITY: Final = 0x10B05


@dataclass
class ScratchState(State):
    """All that the device remembers."""

    scratch: int = 0
    reads: int = 0


class Scratch(Stateful, Device):
    """An identity, a scratch register and a counter of reads."""

    length: Final = 0x1000
    state: ScratchState

    def __init__(self) -> None:
        self.state = ScratchState()

    def reset(self) -> None:
        self.state = ScratchState()

    def read(self, offset: int, size: int) -> int:
        if size != 4:  # not ours: whoever else claims the address is asked
            return NotImplemented  # type: ignore[no-any-return]
        self.state.reads = self.state.reads + 1 & 0xFFFFFFFF
        return {ID: IDENTITY, SCRATCH: self.state.scratch, READS: self.state.reads}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> object:
        if size != 4:
            return NotImplemented
        if offset == SCRATCH:
            self.state.scratch = value
        return None
