"""PVH: `PvhImage.read`, then `load`. By Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.

Stands on `handover.py` and `elf.py`. An ELF file with the note XEN_ELFNOTE_PHYS32_ENTRY, as Linux's vmlinux and Xen
itself have it, is entered at the note's physical address in 32-bit protected mode: EBX is the address of
`hvm_start_info`, whose memory map, modules and ACPI root pointer make a boot without any firmware.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from iobus.boot.elf import Elf
from iobus.boot.handover import FLAT_GDT, BootError, Handover, Room, c_string, protected_mode
from iobus.boot.multiboot import place_modules
from iobus.cpu_registers import Registers
from iobus.memory import Memory

START_MAGIC: Final = 0x336EC578
"""The first word of hvm_start_info."""
_NOTE_NAME: Final = b"Xen"
_PHYS32_ENTRY: Final = 18
_VERSION: Final = 1
"""Of hvm_start_info: the first with a memory map."""
_START_INFO: Final = struct.Struct("<IIIIQQQQII")
"""magic, version, flags, nr_modules; paddr of modlist, cmdline, rsdp and memmap; memmap_entries, reserved."""


def entry(elf: Elf) -> int | None:
    """Return the physical address that the note names, or None without the note."""
    for note in elf.notes:
        if note.name == _NOTE_NAME and note.kind == _PHYS32_ENTRY and len(note.data) in (4, 8):
            return int.from_bytes(note.data, "little")
    return None


@dataclass(frozen=True, slots=True)
class PvhImage:
    """An ELF file with a PVH entry."""

    path: Path
    elf: Elf
    entry: int

    @classmethod
    def read(cls, data: bytes, path: Path) -> Self:
        """Check an image. Raises `BootError`."""
        elf = Elf.parse(data, path)
        at = entry(elf)
        if at is None:
            raise BootError(
                f"ELF file {path} says no way to boot it: it has neither a Multiboot header nor the note "
                "XEN_ELFNOTE_PHYS32_ENTRY of a PVH entry"
            )
        if at >> 32:
            raise BootError(f"ELF file {path} has its PVH entry at {at:#x}; it must be below 4 GiB")
        return cls(path, elf, at)

    def load(self, memory: Memory, handover: Handover) -> Registers:
        """As `Image.load`. A module's command line is its own, without its name."""
        room = Room(handover.e820, f"PVH image {self.path}")
        self.elf.claim(room)
        places = place_modules(room, handover, self.elf.end)
        strings = [c_string(handover.command_line, "the command line")]
        strings += [
            c_string(module.command_line, f"the command line of module {module.name}") for module in handover.modules
        ]
        info_at = len(FLAT_GDT)
        map_at = info_at + _START_INFO.size
        modules_at = map_at + 24 * len(handover.e820)
        block = bytearray(modules_at + 32 * len(places))
        base = room.place(len(block) + sum(map(len, strings)), "its start info", align=16)
        texts = []
        for text in strings:
            texts.append(base + len(block))
            block += text
        block[:info_at] = FLAT_GDT
        _START_INFO.pack_into(
            block, info_at, START_MAGIC, _VERSION, 0, len(places), base + modules_at, texts[0],
            handover.acpi_rsdp_address, base + map_at, len(handover.e820), 0,
        )  # fmt: skip
        for index, item in enumerate(handover.e820):
            struct.pack_into("<QQII", block, map_at + 24 * index, *item, 0)
        for index, (place, module) in enumerate(zip(places, handover.modules, strict=True)):
            struct.pack_into("<4Q", block, modules_at + 32 * index, place, len(module.data), texts[1 + index], 0)

        self.elf.write(memory)
        for place, module in zip(places, handover.modules, strict=True):
            memory.write(place, module.data)
        memory.write(base, block)
        return protected_mode(self.entry, gdt=base, rbx=base + info_at)
