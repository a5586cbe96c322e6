"""Multiboot 2: `Multiboot2Image.read`, then `load`. By the Multiboot2 Specification 2.0.

Stands on `multiboot.py`, whose images it shares: ELF, or by addresses in the header. The header is in the file's
first 32 KiB, and made of tags. An image that says it is relocatable is moved where its tag wants it. Entered by the
i386 state: 32-bit protected mode, EAX the magic number, EBX the address of the information, made of tags too.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

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
from iobus.boot.multiboot import Addresses, Piece, Program, place_modules
from iobus.cpu_registers import Registers
from iobus.memory import Memory

HEADER_MAGIC: Final = 0xE85250D6
ENTRY_MAGIC: Final = 0x36D76289
"""In EAX at the entry."""
SEARCHED: Final = 32768
"""Bytes of the file that the header lies in, whole and at a multiple of 8."""

_ARCHITECTURE_I386: Final = 0


class HeaderTag(enum.IntEnum):
    """The types of the header's tags (3.1.3 on)."""

    END = 0
    INFORMATION_REQUEST = 1
    ADDRESS = 2
    ENTRY_ADDRESS = 3
    CONSOLE_FLAGS = 4
    FRAMEBUFFER = 5
    MODULE_ALIGN = 6
    ENTRY_EFI_I386 = 8
    ENTRY_EFI_AMD64 = 9
    RELOCATABLE = 10


class InfoTag(enum.IntEnum):
    """The types of the information's tags that are given (3.6)."""

    END = 0
    COMMAND_LINE = 1
    LOADER_NAME = 2
    MODULE = 3
    MEMORY = 4
    MEMORY_MAP = 6
    ACPI_OLD = 14
    ACPI_NEW = 15
    LOAD_BASE = 21


_OPTIONAL: Final = 1 << 0
"""Of a tag's flags: a loader that does not know the tag may go on."""
_HARMLESS: Final = frozenset((
    HeaderTag.CONSOLE_FLAGS, HeaderTag.FRAMEBUFFER, HeaderTag.MODULE_ALIGN,
    HeaderTag.ENTRY_EFI_I386, HeaderTag.ENTRY_EFI_AMD64,
))  # fmt: skip
"""Preferences, what is done anyway, and entries for machines that are not this one."""
_SIZES: Final = {HeaderTag.ADDRESS: 24, HeaderTag.ENTRY_ADDRESS: 12, HeaderTag.RELOCATABLE: 24}
_HIGHEST: Final = 2  # of the relocatable tag's preferences


class Relocation(NamedTuple):
    """The relocatable tag (3.1.14)."""

    min_addr: int
    max_addr: int
    align: int
    preference: int
    """0 none, 1 as low as possible, 2 as high."""


def find_header(data: bytes) -> int | None:
    """Return the offset of the header in a file, or None."""
    for at in range(0, min(len(data), SEARCHED) - 15, 8):
        magic, architecture, length, checksum = struct.unpack_from("<4I", data, at)
        if magic == HEADER_MAGIC and not magic + architecture + length + checksum & 0xFFFFFFFF:
            return at
    return None


@dataclass(frozen=True, slots=True)
class Multiboot2Image:
    """An image with a Multiboot 2 header."""

    path: Path
    program: Program
    entry: int
    relocation: Relocation | None

    @classmethod
    def read(cls, data: bytes, path: Path) -> Self:
        """Check an image. Raises `BootError`."""
        who = f"multiboot2 image {path}"
        at = find_header(data)
        if at is None:
            raise BootError(f"image {path} has no Multiboot2 header in its first {SEARCHED} bytes")
        architecture, length = struct.unpack_from("<II", data, at + 4)
        if architecture != _ARCHITECTURE_I386:
            raise BootError(f"{who} is for architecture {architecture} of the specification; want 0, i386")
        addresses: tuple[int, ...] | None = None
        entry: int | None = None
        relocation = None
        for kind, flags, body in _header_tags(data, at, length, who):
            match kind:
                case HeaderTag.INFORMATION_REQUEST:
                    wanted = struct.unpack(f"<{len(body) // 4}I", body[: len(body) // 4 * 4])
                    missing = sorted(set(wanted) - set(InfoTag))
                    if missing and not flags & _OPTIONAL:
                        raise BootError(f"{who} requires information of type {missing[0]}, which this machine has not")
                case HeaderTag.ADDRESS:
                    addresses = struct.unpack_from("<4I", body)
                case HeaderTag.ENTRY_ADDRESS:
                    (entry,) = struct.unpack_from("<I", body)
                case HeaderTag.RELOCATABLE:
                    relocation = Relocation(*struct.unpack_from("<4I", body))
                    if relocation.align & relocation.align - 1:
                        raise BootError(f"{who} is to be aligned to {relocation.align:#x}, which is no power of 2")
                case _ if kind not in _HARMLESS and not flags & _OPTIONAL:
                    raise BootError(f"{who} requires what its header tag of type {kind} is for, and no optional one")
        if addresses is not None:
            if entry is None:
                raise BootError(f"{who} has an address tag and no entry address tag; it must have both")
            program = Program(Piece.cut(data, at, Addresses(*[*addresses, entry]), path))
        elif data.startswith(ELF_MAGIC):
            program = Program(Elf.parse(data, path))
        else:
            raise BootError(f"{who} is no ELF file and its header has no address tag")
        return cls(path, program, program.entry if entry is None else entry, relocation)

    def load(self, memory: Memory, handover: Handover) -> Registers:
        """As `Image.load`. The command line that the guest gets begins with the file's name."""
        room = Room(handover.e820, f"multiboot2 image {self.path}")
        moved = self._claim(room)
        places = place_modules(room, handover, self.program.end + moved)

        tags = [_string_tag(InfoTag.COMMAND_LINE, f"{self.path.name} {handover.command_line}".rstrip(), "command line")]
        tags.append(_string_tag(InfoTag.LOADER_NAME, LOADER_NAME, "loader's name"))
        tags.append(_tag(InfoTag.MEMORY, struct.pack("<II", *memory_sizes(handover.e820))))
        entries = b"".join(struct.pack("<QQII", *entry, 0) for entry in handover.e820)
        tags.append(_tag(InfoTag.MEMORY_MAP, struct.pack("<II", 24, 0) + entries))
        if handover.acpi_rsdp:
            tags.append(_tag(InfoTag.ACPI_OLD, handover.acpi_rsdp[:20]))
            tags.append(_tag(InfoTag.ACPI_NEW, handover.acpi_rsdp))
        if self.relocation is not None:
            tags.append(_tag(InfoTag.LOAD_BASE, struct.pack("<I", self.program.start + moved)))
        for place, module in zip(places, handover.modules, strict=True):
            string = c_string(module.text, f"the command line of module {module.name}")
            tags.append(_tag(InfoTag.MODULE, struct.pack("<II", place, place + len(module.data)) + string))
        tags.append(_tag(InfoTag.END, b""))
        body = b"".join(tags)
        information = struct.pack("<II", 8 + len(body), 0) + body
        base = room.place(len(FLAT_GDT) + len(information), "its information", align=16)

        self.program.write(memory, moved)
        for place, module in zip(places, handover.modules, strict=True):
            memory.write(place, module.data)
        memory.write(base, FLAT_GDT + information)
        return protected_mode(self.entry + moved, gdt=base, rax=ENTRY_MAGIC, rbx=base + len(FLAT_GDT))

    def _claim(self, room: Room) -> int:
        """Take the image's room, moved where its relocatable tag wants it; return by how much."""
        program, wish = self.program, self.relocation
        moved = 0
        if wish is not None:
            size = program.end - program.start
            high = min(wish.max_addr + 1, 1 << 32)
            as_linked = wish.min_addr <= program.start and program.end <= high and room.is_usable(program.start, size)
            if wish.preference or not as_linked:
                at = room.place(
                    size, "the image", align=max(wish.align, 1), low=wish.min_addr, high=high,
                    highest=wish.preference == _HIGHEST,
                )  # fmt: skip
                room.release(at, size)  # to be claimed by segments
                moved = at - program.start
        program.claim(room, moved)
        return moved


def _header_tags(data: bytes, at: int, length: int, who: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of each tag up to the end tag."""
    end = at + length
    if end > min(len(data), at + SEARCHED) or length < 16:
        raise BootError(f"{who} has a header of {length} bytes at {at:#x}, which is not all in the file's beginning")
    at += 16
    while at + 8 <= end:
        kind, flags, size = struct.unpack_from("<HHI", data, at)
        if kind == HeaderTag.END:
            return
        if size < _SIZES.get(kind, 8) or at + size > end:
            raise BootError(f"{who} has a header tag of type {kind} and {size} bytes at {at:#x}, which cannot be")
        yield kind, flags, data[at + 8 : at + size]
        at += -(-size // 8) * 8


def _tag(kind: int, body: bytes) -> bytes:
    """A tag of the information, padded to 8 bytes; the padding is not counted in its size."""
    return struct.pack("<II", kind, 8 + len(body)) + body + bytes(-len(body) % 8)


def _string_tag(kind: int, text: str, what: str) -> bytes:
    return _tag(kind, c_string(text, f"the {what}"))
