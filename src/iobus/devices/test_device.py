"""The test device of KVM's unit-test guests: ports and memory that hold what was written, and lines to raise.

Stands among the devices; `pc/host_interface.py` says where. QEMU has the same as pc-testdev. Emulators of
instructions are tried on it, and interrupt controllers by the lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.bus import Device
from iobus.irq import Line
from iobus.state import U8, U64, Length, State, Stateful

_LATCH: Final = 4
_MEMORY: Final = 0x10000


@dataclass
class EchoPortsState(State):
    """The four bytes."""

    latch: list[U8] = field(default_factory=lambda: [0] * _LATCH)


class EchoPorts(Stateful, Device):
    """12 ports. 0-3 and 8-11 are the same four bytes, accessed in 1, 2 or 4; 4-7 take the address of a page.

    What to do with that page, to map it anew, is of no effect on a guest: nothing is done, and it reads as 0.
    """

    name = "echo-ports"
    length: Final = 12
    state: EchoPortsState

    def __init__(self) -> None:
        self.state = EchoPortsState()

    def reset(self) -> None:
        self.state = EchoPortsState()

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(bytes(self._get(offset + index) for index in range(size)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for index, byte in enumerate(value.to_bytes(size, "little"), offset):
            if index & _LATCH == 0:
                self.state.latch[index & 3] = byte

    def _get(self, offset: int) -> int:
        return 0 if offset & _LATCH else self.state.latch[offset & 3]


@dataclass
class LineSwitchesState(State):
    """The levels."""

    levels: U64 = 0
    """A bit a line."""


class LineSwitches(Stateful, Device):
    """A port an interrupt line: a write of 0 lowers it, of anything else raises it. They read as the level, 0 or 1."""

    name = "line-switches"
    state: LineSwitchesState

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        self.length: Final = len(lines)
        self.state = LineSwitchesState()

    def reset(self) -> None:
        self.state = LineSwitchesState()
        self.restored()

    def restored(self) -> None:
        for number, line in enumerate(self._lines):
            line.set(bool(self.state.levels >> number & 1))

    def read(self, offset: int, size: int) -> int:
        return sum((self.state.levels >> offset + index & 1) << 8 * index for index in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        bit = 1 << offset
        self.state.levels = self.state.levels & ~bit | (bit if value else 0)
        self.restored()


@dataclass
class EchoMemoryState(State):
    """The bytes."""

    data: Annotated[bytes, Length(_MEMORY, _MEMORY)] = bytes(_MEMORY)
    """64 KiB."""


class EchoMemory(Stateful, Device):
    """64 KiB of memory-mapped I/O that holds what is written, at any size and alignment."""

    name = "echo-memory"
    length: Final = _MEMORY
    state: EchoMemoryState

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.state = EchoMemoryState()

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.state.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        data = self.state.data
        self.state.data = data[:offset] + value.to_bytes(size, "little") + data[offset + size :]
