"""A flat binary: bytes put at an address and run from their first. `FlatImage.read`, then `load`.

Stands on `handover.py`. Below 1 MiB the CPU starts in real mode with the offset in IP as large as it can be, so that
a boot sector at 0x7C00 is entered at 0000:7C00, as a BIOS does it; from 1 MiB on in 32-bit protected mode with flat
segments and paging off. Nothing is handed over but the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from iobus.boot.handover import FLAT_GDT, BootError, Handover, Room, protected_mode
from iobus.cpu_registers import Registers, Segment
from iobus.memory import Memory

_REAL_MODE_END: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FlatImage:
    """A file's bytes and where they go."""

    path: Path
    address: int
    data: bytes

    @classmethod
    def read(cls, data: bytes, path: Path, address: int) -> Self:
        """Check an image. Raises `BootError`."""
        if not data:
            raise BootError(f"image {path} is empty; give a file with code")
        return cls(path, address, data)

    def load(self, memory: Memory, handover: Handover) -> Registers:
        """As `Image.load`; a command line or modules have no place to be told in, and are refused."""
        room = Room(handover.e820, f"flat image {self.path}")
        room.claim(self.address, len(self.data), "the image")
        if handover.command_line or handover.modules:
            given = "a command line" if handover.command_line else "modules"
            raise BootError(f"flat image {self.path} is given {given}, of which it could not know; leave that out")
        if self.address < _REAL_MODE_END:
            memory.write(self.address, self.data)
            segment = self.address >> 4 & 0xF000
            data = Segment()
            return Registers(
                rip=self.address & 0xFFFF, cs=Segment(segment, segment << 4, 0xFFFF, 0x9B), idt_limit=0x3FF,
                ds=data, es=data, ss=data, fs=data, gs=data, cr0=0x10,
            )  # fmt: skip
        gdt = room.place(len(FLAT_GDT), "its GDT", align=16)
        memory.write(self.address, self.data)
        memory.write(gdt, FLAT_GDT)
        return protected_mode(self.address, gdt=gdt)
