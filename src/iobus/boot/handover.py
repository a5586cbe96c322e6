"""What the loaders in `boot` share: reading files, the memory map, what goes with an image, room in RAM.

The ground floor of `boot`: above `memory` and `pc.layout`, below one loader a kind of image (`linux.py`,
`multiboot.py`, `multiboot2.py`, `pvh.py`, `flat.py`), which `image.py` chooses between. Every file here is
hostile until checked, and what is wrong with it is one `BootError`.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from iobus.bus import IobusError
from iobus.cpu_registers import CR0_PE, Registers, Segment
from iobus.memory import PAGE_SIZE, Memory
from iobus.pc import layout

E820_RAM: Final = 1
E820_RESERVED: Final = 2

LOADER_NAME: Final = "iobus"
"""What guests that ask are told about who loaded them."""

LARGEST_FILE: Final = 1 << 30
"""Of an image or module, decompressed too, in bytes: more is no mistake of the guest's but of whoever gave it."""

HANDOVER_START: Final = 0x9000
"""Loaders put what they tell a guest at or above: below are the BIOS's data, and where guests start other CPUs."""

_MEBIBYTE: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"


class BootError(IobusError):
    """A guest that cannot be booted: one sentence with the file, the value and what would be right."""


class E820Entry(NamedTuple):
    """One range of the memory map that the guest is given."""

    base: int
    size: int
    kind: int
    """`E820_RAM` or `E820_RESERVED`; ACPI specification, section 15, has the other values."""


def e820(memory: Memory) -> list[E820Entry]:
    """Return the PC's memory map: all RAM is usable but the EBDA and the BIOS area with ACPI's tables."""
    low_end = layout.VGA_HOLE[0]
    reserved = [
        E820Entry(layout.EBDA, low_end - layout.EBDA, E820_RESERVED),
        E820Entry(layout.ACPI_TABLES, _MEBIBYTE - layout.ACPI_TABLES, E820_RESERVED),
    ]
    usable = []
    for slot in memory.slots:
        end = slot.base + slot.size
        for start, stop in ((slot.base, min(end, layout.EBDA)), (max(slot.base, _MEBIBYTE), end)):
            if start < stop:
                usable.append(E820Entry(start, stop - start, E820_RAM))
    return sorted(usable + reserved)


@dataclass(frozen=True, slots=True)
class Module:
    """A file that is put into RAM beside the image: an initrd, a domain's kernel, a boot script."""

    name: str
    """The file's name, without its directory."""
    data: bytes
    command_line: str = ""

    @property
    def text(self) -> str:
        """Name and command line, as guests expect a module's string."""
        return f"{self.name} {self.command_line}".rstrip()


@dataclass(frozen=True, slots=True)
class Handover:
    """What a guest is told and given besides its image."""

    e820: Sequence[E820Entry]
    command_line: str = ""
    modules: Sequence[Module] = ()
    acpi_rsdp: bytes = b""
    """A copy of ACPI's root pointer, for those that hand one on; empty where there is none."""
    acpi_rsdp_address: int = 0
    """Its guest physical address; 0 where there is none."""


class Image(Protocol):
    """A file of some kind, read and found bootable."""

    @property
    def path(self) -> Path:
        """The file's."""

    def load(self, memory: Memory, handover: Handover) -> Registers:
        """Write it and what it is handed into RAM; return the first CPU's registers. Raises `BootError`.

        Nothing is written before all of it was found to fit.
        """


def read_file(path: str | os.PathLike[str], what: str) -> bytes:
    """Return a regular file's bytes; `what` it is, is for the error. Raises `BootError`."""
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise BootError(f"{what} {path} is no regular file; give a file")
            if info.st_size > LARGEST_FILE:
                raise BootError(f"{what} {path} has {info.st_size} bytes; at most {LARGEST_FILE} can be loaded")
            return file.read()
    except IsADirectoryError:
        raise BootError(f"{what} {path} is a directory; give the file in it") from None
    except FileNotFoundError:
        raise BootError(f"{what} {path} does not exist; give the path of a file") from None
    except (OSError, ValueError) as exc:  # a name with a NUL is a ValueError
        raise BootError(
            f"{what} {path} cannot be read ({getattr(exc, 'strerror', exc)}); give a file that can"
        ) from exc


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for somebody to write, as one does at a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def decompressed(data: bytes, path: Path) -> bytes:
    """Return what a gzip file holds, as GRUB loads images; other data as it is. Raises `BootError`."""
    if not data.startswith(_GZIP):
        return data
    result = bytearray()
    while data.startswith(_GZIP):  # one member after the other; what follows the last is ignored
        inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            result += inflate.decompress(data, LARGEST_FILE + 1 - len(result))
        except zlib.error as exc:
            raise BootError(f"image {path} is a damaged gzip file ({exc}); give one that gunzip can read") from exc
        if len(result) > LARGEST_FILE:
            raise BootError(f"image {path} decompresses to more than the {LARGEST_FILE} bytes that can be loaded")
        if not inflate.eof:
            raise BootError(f"image {path} is a truncated gzip file: it ends after {len(result)} bytes of its content")
        data = inflate.unused_data
    return bytes(result)


def c_string(text: str, what: str) -> bytes:
    """Return a NUL-terminated string. Raises `BootError` where it would end early."""
    data = text.encode(errors="surrogateescape")
    if b"\0" in data:
        raise BootError(f"{what} has a NUL character at {data.index(0)}; drop it")
    return data + b"\0"


def memory_sizes(entries: Sequence[E820Entry]) -> tuple[int, int]:
    """Return the KiB of RAM from 0 up, and from 1 MiB up to the first hole, as multiboot information has them."""
    lower = next((entry.size for entry in entries if entry.kind == E820_RAM and not entry.base), 0)
    upper = next((entry.size for entry in entries if entry.kind == E820_RAM and entry.base == _MEBIBYTE), 0)
    return min(lower, 640 << 10) >> 10, min(upper >> 10, 0xFFFFFFFF)


FLAT_GDT: Final = struct.pack("<3Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
"""A flat 32-bit code segment at selector 8 and a data segment at 0x10: what `protected_mode` starts with."""


def protected_mode(entry: int, *, gdt: int, rax: int = 0, rbx: int = 0) -> Registers:
    """Return the registers for an entry in 32-bit protected mode: flat segments, paging and interrupts off.

    `FLAT_GDT` is at address `gdt`. The specifications promise no GDT, but many a guest reloads a segment register
    before it has one of its own, which every loader's GDT allows.
    """
    data = Segment(0x10, 0, 0xFFFFFFFF, 0xC093)
    return Registers(
        rip=entry, cs=Segment(0x08, 0, 0xFFFFFFFF, 0xC09B), ds=data, es=data, ss=data, fs=data, gs=data,
        tr=Segment(0, 0, 0x67, 0x8B), gdt_base=gdt, gdt_limit=len(FLAT_GDT) - 1, idt_limit=0, cr0=CR0_PE | 0x10,
        rax=rax, rbx=rbx,
    )  # fmt: skip


class Room:
    """The usable RAM of a memory map below 4 GiB, and what of it is taken. For `who`, as errors name it."""

    def __init__(self, entries: Sequence[E820Entry], who: str) -> None:
        self._who = who
        ranges = ((entry.base, min(entry.base + entry.size, 1 << 32)) for entry in entries if entry.kind == E820_RAM)
        self._usable = sorted((start, end) for start, end in ranges if start < end)
        self._taken: list[tuple[int, int]] = []  # sorted, disjoint

    @property
    def usable(self) -> Sequence[tuple[int, int]]:
        """The ranges, taken or not, first to last: start and end in bytes."""
        return self._usable

    def is_usable(self, start: int, size: int) -> bool:
        """Whether all of the range is RAM for a guest's use."""
        return any(low <= start and start + size <= high for low, high in self._usable)

    def claim(self, start: int, size: int, what: str) -> None:
        """Take the range. Raises `BootError` where it is not all usable RAM, or some of it is taken."""
        end = start + size
        if not self.is_usable(start, size):
            raise BootError(
                f"{self._who}: {what} at [{start:#x}, {end:#x}) is not in RAM; usable are "
                f"{', '.join(f'[{low:#x}, {high:#x})' for low, high in self._usable)}"
            )
        if size <= 0:
            return
        at = bisect_left(self._taken, (start, end))
        for low, high in self._taken[max(at - 1, 0) : at + 1]:
            if start < high and low < end:
                raise BootError(
                    f"{self._who}: {what} at [{start:#x}, {end:#x}) overlaps what is at [{low:#x}, {high:#x})"
                )
        insort(self._taken, (start, end))

    def place(
        self, size: int, what: str, *, align: int = PAGE_SIZE, low: int = HANDOVER_START, high: int = 1 << 32,
        highest: bool = False,
    ) -> int:  # fmt: skip
        """Take `size` bytes where there is room, at a multiple of `align` in `[low, high)`, the lowest such place.

        With `highest` the highest. Raises `BootError` where there is none.
        """
        gaps = self._gaps()
        largest = 0
        for start, end in reversed(gaps) if highest else gaps:
            start, end = max(start, low), min(end, high)
            largest = max(largest, end - start)
            at = (end - size) // align * align if highest else -(-start // align) * align
            if start <= at and at + size <= end:
                self.claim(at, size, what)
                return at
        raise BootError(
            f"{self._who}: there is no room for {what} of {size} bytes from {low:#x} up to {high:#x}; "
            f"the largest is {largest} bytes: give the guest more memory"
        )

    def release(self, start: int, size: int) -> None:
        """Give back what `place` took, for parts of it to be claimed."""
        self._taken.remove((start, start + size))

    def _gaps(self) -> list[tuple[int, int]]:
        gaps = []
        for low, high in self._usable:
            for start, end in self._taken:
                if low < end and start < high:
                    if low < start:
                        gaps.append((low, start))
                    low = end
            if low < high:
                gaps.append((low, high))
        return gaps
