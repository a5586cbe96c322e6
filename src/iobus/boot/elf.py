"""ELF executables of x86: the segments to load, the entry, the notes. `Elf.parse`.

Stands on `handover.py`; `multiboot.py`, `multiboot2.py` and `pvh.py` load what it finds. Only program headers are
read, as a loader does: sections are for linkers. By the System V ABI, chapters 4 and 5 (ELF-32 and ELF-64).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from iobus.boot.handover import BootError, Room
from iobus.memory import Memory

MAGIC: Final = b"\x7fELF"

_ET_EXEC, _ET_DYN = 2, 3
_MACHINES: Final = {1: (3,), 2: (62,)}
"""EM_386 in an ELF-32 file, EM_X86_64 in an ELF-64 file."""
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM: Final = 0xFFFF
_NOTES_LARGEST: Final = 1 << 20
"""Of all note segments, in bytes: real ones have some hundreds."""


class Segment(NamedTuple):
    """A piece of the program to be loaded."""

    address: int
    """Where it is loaded: the physical address."""
    virtual: int
    data: memoryview
    size: int
    """In memory, in bytes: what is beyond `data` is zero."""


class Note(NamedTuple):
    """An entry of a note segment."""

    name: bytes
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Elf:
    """A file's program headers, checked against the file's size."""

    path: Path
    bits: int
    """32 or 64."""
    entry: int
    """As in the header: by convention a virtual address."""
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...]

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Self:
        """Read the headers of an x86 executable. Raises `BootError`."""
        if len(data) < 64:
            raise BootError(f"ELF file {path} is truncated: it ends at {len(data)} bytes, inside its header")
        kind, order = data[4], data[5]
        if kind not in _MACHINES or order != 1:
            raise BootError(f"ELF file {path} has class {kind} and byte order {order}; want 1 or 2, and 1")
        type_, machine = struct.unpack_from("<HH", data, 16)
        if machine not in _MACHINES[kind] or type_ not in (_ET_EXEC, _ET_DYN):
            raise BootError(
                f"ELF file {path} is of type {type_} for machine {machine}; want an executable (2 or 3) "
                f"for x86 ({_MACHINES[kind][0]})"
            )
        entry, at = struct.unpack_from("<II" if kind == 1 else "<QQ", data, 24)
        entry_size, count = struct.unpack_from("<HH", data, 42 if kind == 1 else 54)
        want = 32 if kind == 1 else 56
        if count == _PN_XNUM or (count and entry_size < want) or at + count * entry_size > len(data):
            raise BootError(
                f"ELF file {path} is damaged or truncated: {count} program headers of {entry_size} bytes at {at:#x} "
                f"do not fit in its {len(data)} bytes"
            )
        view = memoryview(data)
        segments, notes, notes_size = [], list[Note](), 0
        for number in range(count):
            header = at + number * entry_size
            if kind == 1:
                what, offset, virtual, address, in_file, size = struct.unpack_from("<6I", data, header)
            else:
                what, _, offset, virtual, address, in_file, size = struct.unpack_from("<IIQQQQQ", data, header)
            if what not in (_PT_LOAD, _PT_NOTE):
                continue
            if offset + in_file > len(data) or (what == _PT_LOAD and in_file > size):
                raise BootError(
                    f"ELF file {path} is damaged or truncated: segment {number} has {in_file} bytes at {offset:#x} of "
                    f"the file and {size} in memory; the file has {len(data)} bytes"
                )
            if what == _PT_LOAD and size:
                segments.append(Segment(address, virtual, view[offset : offset + in_file], size))
            elif what == _PT_NOTE:
                notes_size += in_file
                if notes_size > _NOTES_LARGEST:
                    raise BootError(
                        f"ELF file {path} has {notes_size} bytes of notes; at most {_NOTES_LARGEST} are read"
                    )
                notes.extend(_notes(data[offset : offset + in_file]))
        if not segments:
            raise BootError(f"ELF file {path} has no segment to load; give an executable")
        return cls(path, 32 if kind == 1 else 64, entry, tuple(segments), tuple(notes))

    @property
    def start(self) -> int:
        """The lowest address of a segment."""
        return min(segment.address for segment in self.segments)

    @property
    def end(self) -> int:
        """The first address behind all segments."""
        return max(segment.address + segment.size for segment in self.segments)

    def physical_entry(self) -> int:
        """The entry where the segments are loaded: a virtual address of one of them is made physical."""
        for segment in self.segments:
            if segment.virtual <= self.entry < segment.virtual + segment.size:
                return self.entry - segment.virtual + segment.address
        return self.entry

    def claim(self, room: Room, moved: int = 0) -> None:
        """Take the room of each segment, `moved` bytes up. Raises `BootError`."""
        for segment in self.segments:
            room.claim(segment.address + moved, segment.size, "a segment")

    def write(self, memory: Memory, moved: int = 0) -> None:
        """Load the segments, `moved` bytes up, after `claim` found them to fit."""
        for segment in self.segments:
            memory.write(segment.address + moved, segment.data)
            memory.zero(segment.address + moved + len(segment.data), segment.size - len(segment.data))


def _notes(data: bytes) -> Iterator[Note]:
    """Each note: three words, a name and a descriptor, both padded to 4 bytes. A broken one ends the list."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        name_at = at + 12
        data_at = name_at + (name_size + 3 & ~3)
        at = data_at + (size + 3 & ~3)
        if data_at + size > len(data):
            return
        yield Note(data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[data_at : data_at + size])
