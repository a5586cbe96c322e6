"""Multiboot 1: `MultibootImage.read`, then `load`. By the Multiboot Specification 0.6.96.

Stands on `handover.py` and `elf.py`; `multiboot2.py` is its successor. The header is in the file's first 8 KiB. The
image is an ELF file of 32 or 64 bits (as GRUB loads both), or with flag 16 whatever the header's addresses say (the
"a.out kludge"). Entered in 32-bit protected mode: EAX the magic number, EBX the address of the information.

What is written beside the image: modules on pages of their own right above it, and in low memory the GDT, the
information, the memory map, the list of modules and the strings, in that order.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from iobus.boot.elf import MAGIC as ELF_MAGIC
from iobus.boot.elf import Elf
from iobus.boot.handover import (
    FLAT_GDT,
    LOADER_NAME,
    BootError,
    Handover,
    Room,
    c_string,
    memory_sizes,
    protected_mode,
)
from iobus.cpu_registers import Registers
from iobus.memory import Memory

HEADER_MAGIC: Final = 0x1BADB002
ENTRY_MAGIC: Final = 0x2BADB002
"""In EAX at the entry."""
SEARCHED: Final = 8192
"""Bytes of the file that the header lies in, whole and at a multiple of 4."""

# The header's flags (3.1.2). Those of bits 0-15 that are not known forbid to load the image.
PAGE_ALIGN: Final = 1 << 0
MEMORY_INFO: Final = 1 << 1
VIDEO_MODE: Final = 1 << 2
ADDRESSES: Final = 1 << 16
_KNOWN: Final = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE

# The information's flags (3.3).
_INFO_MEMORY: Final = 1 << 0
_INFO_COMMAND_LINE: Final = 1 << 2
_INFO_MODULES: Final = 1 << 3
_INFO_MEMORY_MAP: Final = 1 << 6
_INFO_LOADER_NAME: Final = 1 << 9
_INFO_SIZE: Final = 120


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where an image without ELF headers is loaded: fields named as in the header (3.1.3)."""

    header_addr: int
    load_addr: int
    load_end_addr: int
    """0: to the file's end."""
    bss_end_addr: int
    """0: there is no bss."""
    entry_addr: int


def find_header(data: bytes) -> int | None:
    """Return the offset of the header in a file, or None."""
    for at in range(0, min(len(data), SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, at)
        if magic == HEADER_MAGIC and not magic + flags + checksum & 0xFFFFFFFF:
            return at
    return None


@dataclass(frozen=True, slots=True)
class Piece:
    """An image without ELF headers: one piece of the file, and zeros behind it."""

    address: int
    data: bytes
    size: int
    """In memory, in bytes."""
    entry: int

    @classmethod
    def cut(cls, data: bytes, header_at: int, addresses: Addresses, path: Path) -> Self:
        """Find the piece by the header at `header_at` of the file. Raises `BootError`."""
        load, end = addresses.load_addr, addresses.load_end_addr
        start = header_at - (addresses.header_addr - load)
        if not load <= addresses.header_addr or start < 0:
            raise BootError(
                f"multiboot image {path} says its header, {header_at:#x} into the file, is at "
                f"{addresses.header_addr:#x} and the image at {load:#x}: that would begin before the file does"
            )
        size = end - load if end else len(data) - start
        if size <= 0 or start + size > len(data):
            raise BootError(
                f"multiboot image {path} says that [{load:#x}, {end:#x}) is loaded from {start:#x} of the file; "
                f"the file has {len(data)} bytes"
            )
        bss_end = addresses.bss_end_addr
        if bss_end and bss_end < load + size:
            raise BootError(f"multiboot image {path} says its bss ends at {bss_end:#x}, inside what is loaded")
        in_memory = bss_end - load if bss_end else size
        return cls(load, data[start : start + size], in_memory, addresses.entry_addr)


class Program:
    """What is loaded of a multiboot image, by its ELF headers or its addresses."""

    def __init__(self, source: Elf | Piece) -> None:
        self._source = source
        if isinstance(source, Elf):
            self.start, self.end, self.entry = source.start, source.end, source.physical_entry()
        else:
            self.start, self.end, self.entry = source.address, source.address + source.size, source.entry

    def claim(self, room: Room, moved: int = 0) -> None:
        """Take its room, `moved` bytes up. Raises `BootError`."""
        if isinstance(self._source, Elf):
            self._source.claim(room, moved)
        else:
            room.claim(self.start + moved, self._source.size, "the image")

    def write(self, memory: Memory, moved: int = 0) -> None:
        """Load it, after `claim`."""
        if isinstance(self._source, Elf):
            self._source.write(memory, moved)
        else:
            piece = self._source
            memory.write(piece.address + moved, piece.data)
            memory.zero(piece.address + moved + len(piece.data), piece.size - len(piece.data))


@dataclass(frozen=True, slots=True)
class MultibootImage:
    """An image with a Multiboot 1 header."""

    path: Path
    program: Program

    @classmethod
    def read(cls, data: bytes, path: Path) -> Self:
        """Check an image. Raises `BootError`."""
        at = find_header(data)
        if at is None:
            raise BootError(f"image {path} has no Multiboot header in its first {SEARCHED} bytes")
        (flags,) = struct.unpack_from("<I", data, at + 4)
        if unknown := flags & 0xFFFF & ~_KNOWN:
            raise BootError(
                f"multiboot image {path} requires features that no loader knows: flags {unknown:#x} of its header"
            )
        if not flags & ADDRESSES:
            if not data.startswith(ELF_MAGIC):
                raise BootError(f"multiboot image {path} is no ELF file and its header has no addresses (flag 16)")
            return cls(path, Program(Elf.parse(data, path)))
        if at + 32 > len(data):
            raise BootError(f"multiboot image {path} is truncated: it ends at {len(data)} bytes, inside its header")
        addresses = Addresses(*struct.unpack_from("<5I", data, at + 12))
        return cls(path, Program(Piece.cut(data, at, addresses, path)))

    def load(self, memory: Memory, handover: Handover) -> Registers:
        """As `Image.load`. The command line that the guest gets begins with the file's name."""
        room = Room(handover.e820, f"multiboot image {self.path}")
        self.program.claim(room)
        places = place_modules(room, handover, self.program.end)
        name = f"{self.path.name} {handover.command_line}".rstrip()
        strings = [c_string(name, "the command line"), c_string(LOADER_NAME, "the loader's name")]
        strings += [c_string(module.text, f"the command line of module {module.name}") for module in handover.modules]

        map_at = len(FLAT_GDT) + _INFO_SIZE
        modules_at = map_at + 24 * len(handover.e820)
        strings_at = modules_at + 16 * len(places)
        block = bytearray(strings_at)
        base = room.place(strings_at + sum(map(len, strings)), "its information", align=16)
        texts = []
        for text in strings:
            texts.append(base + len(block))
            block += text
        block[: len(FLAT_GDT)] = FLAT_GDT
        flags = _INFO_MEMORY | _INFO_COMMAND_LINE | _INFO_MODULES | _INFO_MEMORY_MAP | _INFO_LOADER_NAME
        lower, upper = memory_sizes(handover.e820)
        # flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr
        info = (flags, lower, upper, 0, texts[0], len(places), base + modules_at)
        struct.pack_into("<7I", block, len(FLAT_GDT), *info)
        # mmap_length, mmap_addr; drives_length, drives_addr, config_table, boot_loader_name
        struct.pack_into("<II", block, len(FLAT_GDT) + 44, 24 * len(handover.e820), base + map_at)
        struct.pack_into("<I", block, len(FLAT_GDT) + 64, texts[1])
        for index, entry in enumerate(handover.e820):
            struct.pack_into("<IQQI", block, map_at + 24 * index, 20, *entry)  # `size` does not count itself
        for index, (place, module) in enumerate(zip(places, handover.modules, strict=True)):
            words = (place, place + len(module.data), texts[2 + index], 0)
            struct.pack_into("<4I", block, modules_at + 16 * index, *words)

        self.program.write(memory)
        for place, module in zip(places, handover.modules, strict=True):
            memory.write(place, module.data)
        memory.write(base, block)
        return protected_mode(self.program.entry, gdt=base, rax=ENTRY_MAGIC, rbx=base + len(FLAT_GDT))


def place_modules(room: Room, handover: Handover, above: int) -> list[int]:
    """Take room for each module, on pages of its own: above the image, else above 1 MiB, else anywhere."""
    places = []
    for module in handover.modules:
        what = f"module {module.name}"
        for low in (above, 1 << 20):
            with contextlib.suppress(BootError):
                places.append(room.place(len(module.data), what, low=low))
                break
        else:
            places.append(room.place(len(module.data), what))
    return places
