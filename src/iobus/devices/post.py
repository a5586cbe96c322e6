"""Ports 0x80-0x8F: the POST code at the first, and the DMA controllers' page registers.

Stands beside the other devices of the PC. In an IBM PC/AT the 16 ports are one small RAM (a 74LS612),
of which the DMA controllers use some bytes as address bits 16-23; the others only read back what was
written. Port 0x80 is one of those: firmware writes its progress there for a card with a display, and
Linux writes it as a delay of one bus cycle, before nearly every access to a slow device: it is among the
hottest ports of a boot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from iobus.bus import Device
from iobus.state import U8, State, Stateful


@dataclass
class PostState(State):
    """The 16 bytes."""

    latches: list[U8] = field(default_factory=lambda: [0] * 16)


class Post(Stateful, Device):
    """16 byte latches; `listener`, if given, is called with each byte written to the first, port 0x80."""

    name = "post"
    length: Final = 16
    state: PostState

    def __init__(self, listener: Callable[[int], None] | None = None) -> None:
        self.state = PostState()
        self._listener = listener

    def reset(self) -> None:
        self.state = PostState()

    def read(self, offset: int, size: int) -> int:
        if size == 1:
            return self.state.latches[offset]
        return int.from_bytes(bytes(self.state.latches[offset : offset + size]), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 1:
            self.state.latches[offset] = value
            if offset == 0 and self._listener is not None:
                self._listener(value)
        else:  # a byte-wide device on the ISA bus: one cycle a byte, lowest first
            for index, byte in enumerate(value.to_bytes(size, "little")):
                self.write(offset + index, 1, byte)
