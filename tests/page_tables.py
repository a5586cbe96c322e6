"""Builds x86 page tables in guest RAM, the plain way, and remembers what it mapped.

Written from the figures of the Intel SDM vol. 3A, chapter 4 (entry formats), without a look at `paging.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iobus.memory import Memory
from iobus.paging import Paging

P, W, U, A, D, PS = 0x01, 0x02, 0x04, 0x20, 0x40, 0x80
NX = 1 << 63
PE, WP, PG = 1 << 0, 1 << 16, 1 << 31
PSE, PAE, LA57, SMEP, SMAP = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11
KIB4, MIB2, MIB4, GIB1 = 1 << 12, 1 << 21, 1 << 22, 1 << 30


@dataclass(frozen=True)
class Mode:
    """One way to page: the index bits of each level, top first, and the bytes of an entry."""

    name: str
    levels: tuple[tuple[int, int], ...]
    """(lowest address bit, how many bits) that index each level."""
    width: int
    cr4: int
    efer: int
    large: tuple[int, ...]
    """The page sizes beside 4 KiB."""


LONG: Final = Mode("4-level", ((39, 9), (30, 9), (21, 9), (12, 9)), 8, PAE, LME | LMA | NXE, (MIB2, GIB1))
LONG5: Final = Mode(
    "5-level", ((48, 9), (39, 9), (30, 9), (21, 9), (12, 9)), 8, PAE | LA57, LME | LMA | NXE, (MIB2, GIB1)
)
PAE32: Final = Mode("PAE", ((30, 2), (21, 9), (12, 9)), 8, PAE, NXE, (MIB2,))
LEGACY: Final = Mode("32-bit", ((22, 10), (12, 10)), 4, PSE, 0, (MIB4,))
MODES: Final = (LONG, LONG5, PAE32, LEGACY)


class Tables:
    """Page tables of one mode, in RAM from `at` upwards."""

    def __init__(self, memory: Memory, mode: Mode = LONG, at: int = 0x10000) -> None:
        self.memory = memory
        self.mode = mode
        self.root = at
        self.next = at + 0x1000

    def paging(self, *, cr0: int = PE | WP | PG, cr4: int = 0, efer: int = 0, cpl: int = 0, rflags: int = 2) -> Paging:
        """The registers that use these tables; `cr4` and `efer` bits are added to what the mode needs."""
        return Paging(cr0, self.root, self.mode.cr4 | cr4, self.mode.efer | efer, rflags, cpl)

    def path(self, gva: int, page: int = KIB4) -> list[int]:
        """The addresses of the entries that lead to `gva`, top first; missing tables are made."""
        table, places = self.root, []
        for low, bits in self.mode.levels:
            places.append(table + (gva >> low) % (1 << bits) * self.mode.width)
            if 1 << low == page:
                return places
            entry = self.memory.load(places[-1], self.mode.width)
            if not entry & P:
                # A PDPTE of PAE paging has no W and U; elsewhere the leaf decides unless a test says otherwise.
                flags = P if self.mode is PAE32 and low == 30 else P | W | U
                entry = self.next | flags
                self.next += 0x1000
                self.memory.store(places[-1], self.mode.width, entry)
            table = entry & ~0xFFF & ((1 << 52) - 1)
        raise AssertionError(f"{page:#x} is no page size of {self.mode.name} paging")

    def map(self, gva: int, gpa: int, flags: int = P | W | U, page: int = KIB4) -> int:
        """Map the page at `gva` to `gpa`; return the address of its entry."""
        place = self.path(gva, page)[-1]
        entry = gpa | flags | (PS if page != KIB4 else 0)
        if self.mode is LEGACY and page == MIB4 and gpa >> 32:  # PSE-36: address bits 32-39 in bits 13-20
            entry = gpa & 0xFFFF_FFFF | (gpa >> 32) << 13 | flags | PS
        self.memory.store(place, self.mode.width, entry)
        return place

    def change(self, place: int, *, set: int = 0, clear: int = 0) -> None:
        """Set and clear bits of the entry at `place`."""
        entry = self.memory.load(place, self.mode.width)
        self.memory.store(place, self.mode.width, (entry | set) & ~clear)
