"""Guest virtual to guest physical: the page-table walk in software, with every check and its fault.

Near the ground: imports `exits.py`, `memory.py` and `cpu_registers.py`. By the Intel SDM vol. 3A, chapter 4
("Paging"): 32-bit, PAE, 4-level and 5-level tables, large pages, user/supervisor, write, NX, SMEP, SMAP.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from iobus.cpu_registers import (
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    RFLAGS_AC,
)
from iobus.exits import PageFault, ProtectionFault
from iobus.memory import Memory, MemoryRangeError

PHYSICAL_BITS: Final = 40
"""The guest's physical address width, in bits (CPUID leaf 0x80000008): entry bits above are reserved."""

_P, _W, _U, _A, _D, _PS = 1, 2, 4, 0x20, 0x40, 0x80
_NX = 1 << 63
_ADDRESS = (1 << 52) - 4096
_BEYOND = (1 << 52) - (1 << PHYSICAL_BITS)

ERROR_P, ERROR_WRITE, ERROR_USER, ERROR_RESERVED, ERROR_FETCH = 1, 2, 4, 8, 16


class Paging(NamedTuple):
    """The registers that decide a translation."""

    cr0: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    rflags: int = 2
    cpl: int = 0


def translate(
    memory: Memory, paging: Paging, gva: int, *, write: bool = False, user: bool = False, fetch: bool = False
) -> int:
    """Return the guest physical address of `gva`, setting accessed and dirty bits as a CPU does.

    Raises `PageFault` with the architecture's error code, `ProtectionFault` for an address that is
    not canonical. A table outside RAM reads as not present.
    """
    cr0, cr3, cr4, efer = paging.cr0, paging.cr3, paging.cr4, paging.efer
    if not cr0 & CR0_PG:
        return gva & 0xFFFFFFFF
    nxe = bool(efer & EFER_NXE) and bool(cr4 & CR4_PAE)
    error = (ERROR_WRITE if write else 0) | (ERROR_USER if user else 0)
    if fetch and (nxe or cr4 & CR4_SMEP):
        error |= ERROR_FETCH
    if efer & EFER_LMA:
        bits = 57 if cr4 & CR4_LA57 else 48
        top = gva >> (bits - 1)
        if top not in (0, (1 << (65 - bits)) - 1):
            raise ProtectionFault(f"address {gva:#x} is not canonical")
        levels, index_bits, width, table = (5 if bits == 57 else 4), 9, 8, cr3 & _ADDRESS
    elif cr4 & CR4_PAE:
        gva &= 0xFFFFFFFF
        levels, index_bits, width, table = 3, 9, 8, cr3 & 0xFFFFFFE0
    else:
        gva &= 0xFFFFFFFF
        levels, index_bits, width, table = 2, 10, 4, cr3 & 0xFFFFF000

    allowed_write, allowed_user, no_execute = True, True, False
    visited: list[tuple[int, int]] = []
    level = levels
    while True:
        shift = 12 + index_bits * (level - 1)
        where = table + (gva >> shift & ((1 << index_bits) - 1)) * width
        try:
            entry = memory.load(where, width)
        except MemoryRangeError:
            raise PageFault(gva, error) from None
        if not entry & _P:
            raise PageFault(gva, error)
        pae_top = levels == 3 and level == 3
        large = bool(entry & _PS) and not pae_top and level > 1 and (width == 8 or bool(cr4 & CR4_PSE))
        if entry & _reserved(level, large, width, nxe, levels):
            raise PageFault(gva, error | ERROR_RESERVED | ERROR_P)
        if not pae_top:  # a PDPTE of PAE paging has no permission bits, and no accessed bit
            allowed_write &= bool(entry & _W)
            allowed_user &= bool(entry & _U)
            no_execute |= nxe and bool(entry & _NX)
            visited.append((where, entry))
        if large or level == 1:
            break
        table = entry & (_ADDRESS if width == 8 else 0xFFFFF000)
        level -= 1

    if user:
        denied = not allowed_user or (write and not allowed_write)
    else:
        denied = write and not allowed_write and bool(cr0 & CR0_WP)
        if allowed_user:
            if fetch:
                denied |= bool(cr4 & CR4_SMEP)
            else:
                denied |= bool(cr4 & CR4_SMAP) and not paging.rflags & RFLAGS_AC
    if denied or (fetch and no_execute):
        raise PageFault(gva, error | ERROR_P)

    last = len(visited) - 1
    for index, (where, entry) in enumerate(visited):
        marked = entry | _A | (_D if write and index == last else 0)
        if marked != entry and memory.find(where, width, write=True) is not None:  # a table in a ROM stays as it is
            memory.store(where, width, marked)
    page_mask = (1 << shift) - 1
    if large and width == 4:  # PSE-36: bits 13-20 of the entry are address bits 32-39
        frame = (entry & 0xFFC00000) | (entry >> 13 & 0xFF) << 32
    else:
        frame = entry & _ADDRESS & ~page_mask if width == 8 else entry & 0xFFFFF000
    return frame | gva & page_mask


def _reserved(level: int, large: bool, width: int, nxe: bool, levels: int) -> int:
    """The bits of a present entry that must be zero."""
    if width == 4:
        return 1 << 21 if large else 0
    reserved = _BEYOND
    if levels == 3:  # PAE paging reserves what the longer tables ignore
        reserved |= 0x7FF << 52
        if level == 3:
            return reserved | _NX | 0x1E6
    if not nxe:
        reserved |= _NX
    if large:
        reserved |= _PS if level > 3 else ((1 << (9 * (level - 1))) - 2) << 12  # bit 12 is PAT
    return reserved
