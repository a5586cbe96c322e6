"""The page-table walk: page sizes, permissions, the exact error codes, accessed and dirty bits.

By the Intel SDM vol. 3A, chapter 4: 4.6 (access rights), 4.7 (error code), 4.8 (accessed and dirty flags), and
the entry formats of 4.3 to 4.5.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_tables import (
    GIB1,
    KIB4,
    LA57,
    LEGACY,
    LMA,
    LME,
    LONG,
    LONG5,
    MIB2,
    MIB4,
    MODES,
    NX,
    NXE,
    PAE,
    PAE32,
    PE,
    PG,
    PS,
    PSE,
    SMAP,
    SMEP,
    WP,
    A,
    D,
    Mode,
    P,
    Tables,
    U,
    W,
)

from iobus.exits import PageFault, ProtectionFault
from iobus.memory import Memory
from iobus.paging import Paging, translate

GVA = 0x1234_5000
"""Some page that every mode can map."""
AC = 1 << 18


def ram() -> Memory:
    memory = Memory()
    memory.add(0, 0x200000)
    return memory


def fault(paging: Paging, memory: Memory, gva: int, **access: bool) -> int:
    """The error code of the page fault that the access must raise."""
    with pytest.raises(PageFault) as caught:
        translate(memory, paging, gva, **access)
    assert caught.value.vector == 14 and caught.value.address == gva
    assert caught.value.error_code is not None
    return caught.value.error_code


by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


# Where an address goes.


def test_without_paging_addresses_are_physical() -> None:
    """With CR0.PG clear the linear address, of 32 bits, is the physical one, whatever CR3 and CR4 say."""
    paging = Paging(cr0=PE, cr3=0x1000, cr4=PAE | SMEP)
    assert translate(Memory(), paging, 0xFEE00020, write=True, user=True) == 0xFEE00020
    assert translate(Memory(), paging, 0x1_0000_0004) == 4


@by_mode
def test_a_4k_page(mode: Mode) -> None:
    """The entries' addresses lead to the page; the offset in it is kept."""
    tables = Tables(memory := ram(), mode)
    tables.map(GVA, 0xFEDC_B000)
    for offset in (0, 0x123, 0xFFF):
        assert translate(memory, tables.paging(), GVA + offset) == 0xFEDC_B000 + offset


@pytest.mark.parametrize(
    ("mode", "page"),
    [(mode, page) for mode in MODES for page in mode.large],
    ids=lambda value: getattr(value, "name", value),
)
def test_large_pages(mode: Mode, page: int) -> None:
    """2 MiB, 4 MiB and 1 GiB pages keep 21, 22 and 30 bits of the offset."""
    tables = Tables(memory := ram(), mode)
    gva = 0x4000_0000
    tables.map(gva, 3 * page if page < GIB1 else GIB1, page=page)
    for offset in (0, KIB4 + 1, page - 1):
        assert translate(memory, tables.paging(), gva + offset) == (3 * page if page < GIB1 else GIB1) + offset


def test_pse36_reaches_above_4_gib() -> None:
    """A 4 MiB page's entry holds physical address bits 32-39 in its bits 13-20 (SDM 4.3)."""
    tables = Tables(memory := ram(), LEGACY)
    tables.map(0x0040_0000, 0xA5_0080_0000, page=MIB4)
    assert translate(memory, tables.paging(), 0x0041_2345) == 0xA5_0081_2345


def test_without_cr4_pse_bit_7_of_a_pde_is_ignored() -> None:
    """CR4.PSE off: a page-directory entry points to a table, whatever its bit 7 says (SDM table 4-5)."""
    tables = Tables(memory := ram(), LEGACY)
    place = tables.map(GVA, 0x7000)
    (pde, pte) = tables.path(GVA)
    assert pte == place
    tables.change(pde, set=PS)
    paging = tables.paging()._replace(cr4=0)
    assert translate(memory, paging, GVA + 4) == 0x7004
    assert translate(memory, paging._replace(cr4=PSE), GVA + 4) != 0x7004


def test_kernel_half_addresses() -> None:
    """Addresses in the upper half are canonical and walked by their low 48 bits, or 57 with CR4.LA57."""
    for mode, gva in ((LONG, 0xFFFF_8000_0000_0000), (LONG, 0xFFFF_FFFF_FFFF_F000), (LONG5, 0xFF00_0000_0000_0000)):
        tables = Tables(memory := ram(), mode)
        tables.map(gva, 0x5000)
        assert translate(memory, tables.paging(), gva + 8) == 0x5008


@pytest.mark.parametrize(
    ("mode", "gva"),
    [
        (LONG, 0x0000_8000_0000_0000),
        (LONG, 0xFFFF_7FFF_FFFF_FFFF),
        (LONG, 0x8000_0000_0000_0000),
        (LONG, 0x00FF_FFFF_FFFF_FFFF),
        (LONG5, 0x0100_0000_0000_0000),
        (LONG5, 0xFEFF_FFFF_FFFF_FFFF),
    ],
)
def test_an_address_that_is_not_canonical_is_a_protection_fault(mode: Mode, gva: int) -> None:
    """#GP(0), vector 13, not a page fault (SDM vol. 1, 3.3.7.1); no table is read, no bit set."""
    tables = Tables(memory := ram(), mode)
    with pytest.raises(ProtectionFault, match="is not canonical") as caught:
        translate(memory, tables.paging(), gva)
    assert (caught.value.vector, caught.value.error_code) == (13, 0)


def test_the_same_address_is_canonical_with_57_bits() -> None:
    """CR4.LA57 is what makes 0x0000800000000000 an address."""
    tables = Tables(memory := ram(), LONG5)
    tables.map(0x0000_8000_0000_0000, 0x9000)
    assert translate(memory, tables.paging(), 0x0000_8000_0000_0000) == 0x9000


@pytest.mark.parametrize("mode", [PAE32, LEGACY], ids=lambda mode: mode.name)
def test_32_bit_modes_have_32_bit_addresses(mode: Mode) -> None:
    """Bits above 31 of a linear address do not exist outside long mode."""
    tables = Tables(memory := ram(), mode)
    tables.map(GVA, 0x5000)
    assert translate(memory, tables.paging(), 1 << 32 | GVA) == 0x5000


def test_cr3_flags_are_not_part_of_the_table_address() -> None:
    """PCID or PWT and PCD in CR3 leave the table where it is; PAE's is aligned to 32 bytes only."""
    for mode, flags in ((LONG, 0xFFF), (LONG5, 0x18), (LEGACY, 0x18), (PAE32, 0x18)):
        tables = Tables(memory := ram(), mode)
        tables.map(GVA, 0x5000)
        paging = tables.paging()
        assert translate(memory, paging._replace(cr3=paging.cr3 | flags), GVA) == 0x5000
    tables = Tables(memory := ram(), PAE32, at=0x10FE0)
    tables.next = 0x12000
    tables.map(0, 0x5000)
    assert translate(memory, tables.paging(), 0) == 0x5000


# What is not there.


@by_mode
def test_not_present_at_any_level(mode: Mode) -> None:
    """An entry without P faults with P clear in the error code, at the leaf and at each table above it."""
    for level in range(len(mode.levels)):
        tables = Tables(memory := ram(), mode)
        tables.map(GVA, 0x5000)
        tables.change(tables.path(GVA)[level], clear=P)
        paging = tables.paging()
        assert fault(paging, memory, GVA) == 0
        assert fault(paging, memory, GVA, write=True) == 0b00010
        assert fault(paging, memory, GVA, user=True) == 0b00100
        assert fault(paging, memory, GVA, write=True, user=True) == 0b00110
        assert fault(paging, memory, GVA, fetch=True) == (0b10000 if mode is not LEGACY else 0)


@by_mode
def test_a_table_outside_ram_reads_as_not_present(mode: Mode) -> None:
    """A walk that leaves RAM ends in a fault, not in an error of the monitor."""
    tables = Tables(memory := ram(), mode)
    tables.map(GVA, 0x5000)
    place = tables.path(GVA)[-2]
    memory.store(place, mode.width, 0xF000_0000 | P | W | U)
    assert fault(tables.paging(), memory, GVA, user=True) == 0b00100
    assert fault(tables.paging()._replace(cr3=0xF000_0000), memory, GVA) == 0


def test_the_fetch_bit_needs_nx_or_smep() -> None:
    """I/D is set in the error code only where CR4.SMEP is, or EFER.NXE with CR4.PAE (SDM 4.7)."""
    tables = Tables(memory := ram(), LONG)
    without = tables.paging()._replace(efer=LME | LMA)
    assert fault(without, memory, GVA, fetch=True) == 0
    assert fault(without._replace(cr4=PAE | SMEP), memory, GVA, fetch=True) == 0b10000
    legacy = Tables(memory := ram(), LEGACY).paging()
    assert fault(legacy._replace(efer=NXE), memory, GVA, fetch=True) == 0
    assert fault(legacy._replace(cr4=PSE | SMEP), memory, GVA, fetch=True) == 0b10000


# What is forbidden.


@by_mode
def test_user_needs_u_at_every_level(mode: Mode) -> None:
    """One entry of the path without U/S makes the page a supervisor's; PAE's PDPTE has no such bit."""
    for level in range(len(mode.levels)):
        tables = Tables(memory := ram(), mode)
        tables.map(GVA, 0x5000)
        tables.change(tables.path(GVA)[level], clear=U)
        if mode is PAE32 and level == 0:
            assert translate(memory, tables.paging(), GVA, user=True) == 0x5000
            continue
        assert translate(memory, tables.paging(), GVA) == 0x5000
        assert fault(tables.paging(), memory, GVA, user=True) == 0b00101
        assert fault(tables.paging(), memory, GVA, user=True, write=True) == 0b00111
        assert fault(tables.paging(), memory, GVA, user=True, fetch=True) == (0b10101 if mode is not LEGACY else 0b101)


@by_mode
def test_writing_needs_w_at_every_level(mode: Mode) -> None:
    """One entry of the path without R/W makes the page read-only: for a user always, else with CR0.WP."""
    for level in range(len(mode.levels)):
        tables = Tables(memory := ram(), mode)
        tables.map(GVA, 0x5000)
        tables.change(tables.path(GVA)[level], clear=W)
        if mode is PAE32 and level == 0:
            assert translate(memory, tables.paging(), GVA, write=True, user=True) == 0x5000
            continue
        paging = tables.paging()
        assert translate(memory, paging, GVA) == translate(memory, paging, GVA, user=True) == 0x5000
        assert fault(paging, memory, GVA, write=True) == 0b00011
        assert fault(paging, memory, GVA, write=True, user=True) == 0b00111
        unprotected = paging._replace(cr0=PE | PG)
        assert translate(memory, unprotected, GVA, write=True) == 0x5000
        assert fault(unprotected, memory, GVA, write=True, user=True) == 0b00111


@pytest.mark.parametrize("mode", [LONG, LONG5, PAE32], ids=lambda mode: mode.name)
def test_nx_at_any_level_forbids_fetching(mode: Mode) -> None:
    """XD in one entry of the path is enough; data accesses are not concerned. A PDPTE of PAE reserves it."""
    for level in range(len(mode.levels)):
        tables = Tables(memory := ram(), mode)
        tables.map(GVA, 0x5000)
        tables.change(tables.path(GVA)[level], set=NX)
        if mode is PAE32 and level == 0:
            assert fault(tables.paging(), memory, GVA) == 0b01001
            continue
        assert translate(memory, tables.paging(), GVA, write=True, user=True) == 0x5000
        assert fault(tables.paging(), memory, GVA, fetch=True) == 0b10001
        assert fault(tables.paging(), memory, GVA, fetch=True, user=True) == 0b10101


def test_nx_is_reserved_without_nxe() -> None:
    """With EFER.NXE clear bit 63 of a present entry is reserved: any access faults with RSVD."""
    tables = Tables(memory := ram(), LONG)
    tables.map(GVA, 0x5000, P | W | U | NX)
    paging = tables.paging()._replace(efer=LME | LMA)
    assert fault(paging, memory, GVA) == 0b01001
    assert fault(paging, memory, GVA, fetch=True) == 0b01001


def test_smep_keeps_the_supervisor_from_fetching_user_pages() -> None:
    """CR4.SMEP: a supervisor's fetch from a user page faults; its data accesses, and user fetches, do not."""
    tables = Tables(memory := ram(), LONG)
    tables.map(GVA, 0x5000)
    tables.map(GVA + KIB4, 0x6000, P | W)
    assert translate(memory, tables.paging(), GVA, fetch=True) == 0x5000
    paging = tables.paging(cr4=SMEP)
    assert fault(paging, memory, GVA, fetch=True) == 0b10001
    assert translate(memory, paging, GVA + KIB4, fetch=True) == 0x6000
    assert translate(memory, paging, GVA, fetch=True, user=True) == 0x5000
    assert translate(memory, paging, GVA, write=True) == 0x5000


def test_smap_keeps_the_supervisor_from_user_data_unless_ac_is_set() -> None:
    """CR4.SMAP: a supervisor's data access to a user page faults while EFLAGS.AC is clear; with it, W is checked."""
    tables = Tables(memory := ram(), LONG)
    tables.map(GVA, 0x5000)
    tables.map(GVA + KIB4, 0x6000, P | U)
    tables.map(GVA + 2 * KIB4, 0x7000, P | W)
    paging = tables.paging(cr4=SMAP)
    assert fault(paging, memory, GVA) == 0b00001
    assert fault(paging, memory, GVA, write=True) == 0b00011
    assert translate(memory, paging, GVA, fetch=True) == 0x5000
    assert translate(memory, paging, GVA, user=True) == 0x5000
    assert translate(memory, paging, GVA + 2 * KIB4, write=True) == 0x7000
    allowed = paging._replace(rflags=2 | AC)
    assert translate(memory, allowed, GVA, write=True) == 0x5000
    assert fault(allowed, memory, GVA + KIB4, write=True) == 0b00011


# What is reserved (SDM 4.3 to 4.5, the entry format tables).


def reserved_cases() -> list[Any]:
    """(mode, page size, level counted from the leaf, bits) that must be zero in a present entry."""
    cases: list[tuple[Mode, int, int, int]] = [
        *[(mode, KIB4, level, 1 << bit) for mode in (LONG, LONG5, PAE32) for level in (0, 1, 2) for bit in (40, 51)],
        *[(mode, KIB4, len(mode.levels) - 1, PS) for mode in (LONG, LONG5)],
        (LONG5, KIB4, 3, PS),
        *[(mode, MIB2, 0, 1 << bit) for mode in (LONG, LONG5, PAE32) for bit in (13, 20)],
        *[(mode, GIB1, 0, 1 << bit) for mode in (LONG, LONG5) for bit in (13, 21, 29)],
        *[(PAE32, page, 0, 1 << bit) for page in (KIB4, MIB2) for bit in (52, 62)],
        (PAE32, KIB4, 1, 1 << 59),
        *[(PAE32, KIB4, 2, 1 << bit) for bit in (1, 2, 5, 6, 7, 8, 52, 62, 63)],
        (LEGACY, MIB4, 0, 1 << 21),
    ]
    return [pytest.param(*case, id=f"{case[0].name}-{case[1]:#x}-{case[2]}-{case[3]:#x}") for case in cases]


@pytest.mark.parametrize(("mode", "page", "level", "bit"), reserved_cases())
def test_a_reserved_bit_faults(mode: Mode, page: int, level: int, bit: int) -> None:
    """A reserved bit of a present entry: RSVD and P in the error code, with the access's own bits."""
    tables = Tables(memory := ram(), mode)
    tables.map(0x4000_0000, 0, page=page)
    tables.change(tables.path(0x4000_0000, page)[-1 - level], set=bit)
    assert fault(tables.paging(), memory, 0x4000_0000) == 0b01001
    assert fault(tables.paging(), memory, 0x4000_0000, write=True, user=True) == 0b01111


def test_there_are_no_512_gib_pages() -> None:
    """PS in a PML4E or PML5E is reserved, also where the rest of the entry would do as a page's."""
    for mode in (LONG, LONG5):
        for level in range(len(mode.levels) - 3):
            tables = Tables(memory := ram(), mode)
            memory.store(tables.path(GVA)[level], 8, P | W | U | PS)
            assert fault(tables.paging(), memory, GVA) == 0b01001


def ignored_cases() -> list[Any]:
    """(mode, page size, level from the leaf, bits) that software or the cache may use as it likes."""
    cases: list[tuple[Mode, int, int, int]] = [
        *[(mode, KIB4, level, 0x7FF << 52 | 0xE18) for mode in (LONG, LONG5) for level in (0, 1, 2, 3)],
        *[(mode, page, 0, 1 << 12 | 0x7FF << 52) for mode in (LONG, LONG5) for page in (MIB2, GIB1)],
        (PAE32, MIB2, 0, 1 << 12),
        *[(PAE32, KIB4, level, 0xE18) for level in (0, 1, 2)],
        *[(LEGACY, KIB4, level, 0xE18) for level in (0, 1)],
        (LEGACY, MIB4, 0, 1 << 12),
    ]
    return [pytest.param(*case, id=f"{case[0].name}-{case[1]:#x}-{case[2]}") for case in cases]


@pytest.mark.parametrize(("mode", "page", "level", "bits"), ignored_cases())
def test_ignored_bits_are_ignored(mode: Mode, page: int, level: int, bits: int) -> None:
    """Bits for software, caching, PAT, global and protection keys change neither the address nor the rights."""
    tables = Tables(memory := ram(), mode)
    tables.map(0x4000_0000, 0, page=page)
    tables.change(tables.path(0x4000_0000, page)[-1 - level], set=bits & ~NX)
    assert translate(memory, tables.paging(), 0x4000_0123, write=True, user=True, fetch=False) == 0x123


def test_a_reserved_bit_outranks_permissions_and_what_is_below() -> None:
    """The walk stops at the first entry that is wrong: RSVD above a missing table is RSVD."""
    tables = Tables(memory := ram(), LONG)
    tables.map(GVA, 0x5000)
    places = tables.path(GVA)
    tables.change(places[1], set=1 << 45, clear=W | U)
    tables.change(places[2], clear=P)
    assert fault(tables.paging(), memory, GVA, write=True, user=True) == 0b01111


# Accessed and dirty.


@by_mode
def test_accessed_and_dirty_bits(mode: Mode) -> None:
    """A translation sets A in every entry it used (PAE's PDPTE has none), a write D in the last one too."""
    tables = Tables(memory := ram(), mode)
    tables.map(GVA, 0x5000)
    places = tables.path(GVA)
    first = 1 if mode is PAE32 else 0
    before = [memory.load(place, mode.width) for place in places]
    translate(memory, tables.paging(), GVA)
    accessed = [entry | A if index >= first else entry for index, entry in enumerate(before)]
    assert [memory.load(place, mode.width) for place in places] == accessed
    translate(memory, tables.paging(), GVA, write=True)
    accessed[-1] |= D
    assert [memory.load(place, mode.width) for place in places] == accessed


@by_mode
def test_a_large_page_gets_its_dirty_bit_in_its_own_entry(mode: Mode) -> None:
    """The entry that maps the page is the one that becomes dirty."""
    page = mode.large[0]
    tables = Tables(memory := ram(), mode)
    place = tables.map(0x4000_0000, 0, page=page)
    translate(memory, tables.paging(), 0x4000_0000, write=True)
    assert memory.load(place, mode.width) & (A | D) == A | D


@by_mode
def test_a_fault_sets_no_bits(mode: Mode) -> None:
    """An access that faults leaves the tables as they were."""
    tables = Tables(memory := ram(), mode)
    tables.map(GVA, 0x5000, P)
    before = memory.read(0x10000, 0x8000)
    fault(tables.paging(), memory, GVA, write=True, user=True)
    assert memory.read(0x10000, 0x8000) == before


def test_bits_that_are_set_are_not_written_again() -> None:
    """A second translation writes no RAM: engines would drop code they translated for nothing."""
    tables = Tables(memory := ram(), LONG)
    tables.map(GVA, 0x5000)
    translate(memory, tables.paging(), GVA, write=True)
    writes: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: writes.append((gpa, length))
    translate(memory, tables.paging(), GVA, write=True)
    assert writes == []


# At random, beside a model that only knows what was mapped.


FRAMES = st.integers(0, (1 << 20) - 1)
RIGHTS = st.builds(lambda w, u, nx: w * W | u * U | nx * NX, st.booleans(), st.booleans(), st.booleans())


@st.composite
def mappings(draw: st.DrawFn) -> tuple[Mode, dict[int, tuple[int, int, int]], list[tuple[int, int]]]:
    """A mode, its pages as gva -> (gpa, page size, rights), and rights to take from tables above them."""
    mode = draw(st.sampled_from(MODES))
    bits = {LONG: 48, LONG5: 57, PAE32: 32, LEGACY: 32}[mode]
    top = 1 << bits
    pages: dict[int, tuple[int, int, int]] = {}
    # Few distinct 1 GiB, so that pages share tables; each page size has its own, so that none overlap.
    homes = draw(st.lists(st.integers(0, (top >> 30) - 1), min_size=3, max_size=3, unique=True))
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, len(mode.large)))
        page = (KIB4, *mode.large)[kind]
        gva = homes[kind] * GIB1 + draw(st.integers(0, GIB1 // page - 1)) * page
        if mode in (LONG, LONG5) and gva >> (bits - 1):
            gva |= (1 << 64) - top
        rights = draw(RIGHTS)
        wide = mode in (LONG, LONG5, PAE32) or page == MIB4
        gpa = (draw(FRAMES) << (20 if wide else 12)) // page * page % (1 << (40 if wide else 32))
        pages[gva] = gpa, page, rights & ~NX if mode is LEGACY else rights
    cuts = draw(st.lists(st.tuples(st.integers(0, 11), st.sampled_from([W, U, NX])), max_size=3))
    return mode, pages, cuts


@settings(max_examples=150, deadline=None)
@given(
    mapped=mappings(),
    probes=st.lists(
        st.tuples(
            st.integers(0, 11), st.integers(0, 1 << 31), st.booleans(), st.booleans(), st.booleans(), st.booleans()
        ),
        min_size=1,
        max_size=20,
    ),
    wp=st.booleans(),
    smep=st.booleans(),
    smap=st.booleans(),
    ac=st.booleans(),
)
def test_random_mappings(
    mapped: tuple[Mode, dict[int, tuple[int, int, int]], list[tuple[int, int]]],
    probes: list[tuple[int, int, bool, bool, bool, bool]],
    wp: bool,
    smep: bool,
    smap: bool,
    ac: bool,
) -> None:
    """Map random pages, then access random addresses: the address, or the fault, is what the mappings say."""
    mode, pages, cuts = mapped
    tables = Tables(memory := ram(), mode)
    for gva, (gpa, page, rights) in pages.items():
        tables.map(gva, gpa, P | rights, page)
    bases = list(pages)
    lost: dict[int, int] = {}  # place of an entry above the page -> rights it does not pass on
    for index, right in cuts:
        gva = bases[index % len(bases)]
        above = tables.path(gva, pages[gva][1])[1 if mode is PAE32 else 0 : -1]
        if above and not (right == NX and mode is LEGACY):
            tables.change(above[0], set=right & NX, clear=right & ~NX)
            lost[above[0]] = lost.get(above[0], 0) | right
    paging = tables.paging(cr0=PE | PG | wp * WP, cr4=smep * SMEP | smap * SMAP, rflags=2 | ac * AC)

    for index, offset, beside, write, user, fetch in probes:
        write = write and not fetch
        base = bases[index % len(bases)]
        gva = base + offset % pages[base][1]
        if beside:
            gva = (base ^ 1 << 29) + offset % KIB4
        hit = next((b for b in bases if b <= gva < b + pages[b][1]), None)
        fetch_bit = 0b10000 * (fetch and (mode is not LEGACY or smep))
        code = 0b00010 * write | 0b00100 * user | fetch_bit
        if hit is None:
            with pytest.raises(PageFault) as caught:
                translate(memory, paging, gva, write=write, user=user, fetch=fetch)
            assert caught.value.error_code == code
            continue
        gpa, page, rights = pages[hit]
        for place in tables.path(hit, page)[:-1]:
            taken = lost.get(place, 0)
            rights = rights & ~(taken & (W | U)) | taken & NX
        allowed = not (fetch and rights & NX)
        if user:
            allowed &= bool(rights & U) and (not write or bool(rights & W))
        else:
            allowed &= not (write and wp and not rights & W)
            allowed &= not (fetch and smep and rights & U)
            allowed &= not (not fetch and smap and not ac and rights & U)
        if allowed:
            assert translate(memory, paging, gva, write=write, user=user, fetch=fetch) == gpa + gva - hit
        else:
            with pytest.raises(PageFault) as caught:
                translate(memory, paging, gva, write=write, user=user, fetch=fetch)
            assert caught.value.error_code == code | 1


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    garbage=st.binary(min_size=64, max_size=64),
    gva=st.integers(0, 2**64 - 1),
    cr4=st.integers(0, 2**22),
    efer=st.integers(0, 2**12),
    access=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_garbage_tables_give_an_address_or_a_fault(
    mode: Mode, garbage: bytes, gva: int, cr4: int, efer: int, access: tuple[bool, bool, bool]
) -> None:
    """Whatever is in the tables and the registers, the walk ends, in an address or in a fault of the guest."""
    memory = Memory()
    memory.add(0, 0x4000)
    memory.write(0, garbage * (0x4000 // 64))
    paging = Paging(PE | PG, 0x1000, cr4 | (mode.cr4 & LA57), efer)
    try:
        gpa = translate(memory, paging, gva, write=access[0], user=access[1], fetch=access[2])
    except (PageFault, ProtectionFault):
        return
    assert 0 <= gpa < 1 << 52
