"""Guest RAM: slots, bounds, and who is told of writes."""

from __future__ import annotations

import ctypes
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.bus import Device
from iobus.exits import MmioExit
from iobus.machine import Machine
from iobus.memory import LARGE_PAGE_SIZE, Memory, MemoryRangeError, Slot


def memory_with(*slots: tuple[int, int]) -> Memory:
    memory = Memory()
    for base, size in slots:
        memory.add(base, size)
    return memory


def test_ram_is_zero_at_first_and_keeps_what_is_written() -> None:
    """Bytes come back as they were written; values are little-endian."""
    memory = memory_with((0x1000, 0x2000))
    assert memory.read(0x1000, 0x2000) == bytes(0x2000)
    memory.write(0x1FFE, b"\x01\x02\x03\x04")
    assert memory.load(0x1FFE, 4) == 0x04030201
    memory.store(0x2FF8, 8, 0x1122334455667788)
    assert memory.read(0x2FF8, 8) == b"\x88\x77\x66\x55\x44\x33\x22\x11"


@pytest.mark.parametrize("data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd")])
def test_any_bytes_can_be_written(data: bytes | bytearray | memoryview) -> None:
    """bytes, bytearray and memoryview are the same to `write`."""
    memory = memory_with((0, 0x1000))
    memory.write(0xFFC, data)
    assert memory.read(0xFFC, 4) == b"abcd"


def test_what_is_read_is_a_copy() -> None:
    """Later writes do not change bytes that were read."""
    memory = memory_with((0, 0x1000))
    before = memory.read(0, 4)
    memory.write(0, b"abcd")
    assert before == bytes(4)


def test_slots_that_touch_are_one_range() -> None:
    """A read or write may span slots, in whatever order they were added, if there is no hole between them."""
    memory = memory_with((0x3000, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000))
    data = bytes(range(256)) * 0x24
    memory.write(0x1800, data)
    assert memory.read(0x1800, len(data)) == data
    assert [slot.base for slot in memory.slots] == [0x1000, 0x2000, 0x3000]


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0, 1), (0xFFF, 2), (0x2FFF, 2), (0x2000, 0x2001), (0x3000, 1), (0x1000, 1 << 40), (-1, 2), (-4, 4), (0x1000, -1)],
)
def test_what_is_not_all_ram_is_refused_whole(gpa: int, length: int) -> None:
    """A range that leaves RAM anywhere raises and names itself; a write of it writes nothing."""
    memory = memory_with((0x1000, 0x2000), (0x4000, 0x1000))
    with pytest.raises(MemoryRangeError, match="is not all RAM"):
        memory.read(gpa, length)
    if 0 < length < 0x10000:
        with pytest.raises(MemoryRangeError, match=rf"\[{gpa:#x}, {gpa + length:#x}\) is not all RAM"):
            memory.write(gpa, b"\xff" * length)
    assert memory.read(0x1000, 0x2000) == bytes(0x2000)


@pytest.mark.parametrize(("base", "size"), [(0x800, 0x1000), (0, 0x800), (0, 0), (0, -0x1000), (-0x1000, 0x1000)])
def test_slots_are_whole_pages(base: int, size: int) -> None:
    """Base and size are whole pages, the size at least one; the error names both."""
    with pytest.raises(MemoryRangeError, match=f"RAM at {base:#x} of {size:#x} bytes: both must be whole pages"):
        Memory().add(base, size)


def test_slots_do_not_overlap() -> None:
    """A slot over another is refused and both are named; touching is allowed."""
    memory = memory_with((0x1000, 0x2000))
    for base, size in ((0x2000, 0x1000), (0, 0x2000), (0, 0x10000), (0x2000, 0x4000)):
        with pytest.raises(MemoryRangeError, match=r"overlaps RAM \[0x1000, 0x3000\)"):
            memory.add(base, size)
    memory.add(0, 0x1000)
    memory.add(0x3000, 0x1000)
    assert len(memory.slots) == 3


def test_find_gives_the_slot_that_holds_all() -> None:
    """A range over two slots is in none, whether they touch or not."""
    memory = memory_with((0x1000, 0x1000), (0x2000, 0x1000))
    assert memory.find(0x1FFF) is memory.slots[0]
    assert memory.find(0x2000, 0x1000) is memory.slots[1]
    assert memory.find(0x1FFF, 2) is None
    assert memory.find(0xFFF) is None and memory.find(0x3000) is None


def test_on_write_is_told_of_each_write() -> None:
    """Address and length of what was written, once; nothing for an empty or a refused write."""
    memory = memory_with((0x1000, 0x1000), (0x2000, 0x1000))
    told: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: told.append((gpa, length))
    memory.write(0x1FF0, bytes(0x20))
    memory.store(0x1000, 8, 1)
    memory.write(0x1000, b"")
    with pytest.raises(MemoryRangeError):
        memory.write(0x2FFF, b"12")
    assert told == [(0x1FF0, 0x20), (0x1000, 8)]


def test_clear_zeroes_all_ram() -> None:
    """Power-on: every slot reads as zeros, the engine is told, and views of the slots show it too."""
    memory = memory_with((0x1000, 0x2000), (0x10000, 0x1000))
    memory.write(0x1000, b"\xff" * 0x2000)
    memory.write(0x10000, b"\xff" * 0x1000)
    told: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: told.append((gpa, length))
    memory.clear()
    assert memory.read(0x1000, 0x2000) == bytes(0x2000)
    assert bytes(memory.slots[1].view) == bytes(0x1000)
    assert told == [(0x1000, 0x2000), (0x10000, 0x1000)]
    memory.store(0x1000, 4, 7)
    assert memory.load(0x1000, 4) == 7


@settings(max_examples=60, deadline=None)
@given(
    pages=st.sets(st.integers(0, 6), min_size=1),
    writes=st.lists(st.tuples(st.integers(-10, 0x7010), st.binary(max_size=0x1800)), max_size=12),
)
def test_ram_beside_a_dictionary_of_bytes(pages: set[int], writes: list[tuple[int, bytes]]) -> None:
    """Random writes over random slots leave what a dictionary of bytes holds, or raise where it lacks a byte."""
    memory = memory_with(*((page * 0x1000, 0x1000) for page in pages))
    model = {page * 0x1000 + offset: 0 for page in pages for offset in range(0x1000)}
    for gpa, data in writes:
        there = all(gpa + index in model for index in range(len(data)))
        if there:
            memory.write(gpa, data)
            model.update({gpa + index: byte for index, byte in enumerate(data)})
            assert memory.read(gpa, len(data)) == data
        else:
            with pytest.raises(MemoryRangeError):
                memory.write(gpa, data)
    for page in pages:
        assert memory.read(page * 0x1000, 0x1000) == bytes(model[page * 0x1000 + offset] for offset in range(0x1000))


# Read-only slots.


def test_a_read_only_slot_is_read_and_not_written() -> None:
    """write, store and zero refuse it whole; program, as who makes a ROM, does not; find tells the two apart."""
    memory = Memory()
    memory.add(0, 0x1000)
    memory.add(0x1000, 0x1000, readonly=True)
    memory.program(0xFFE, b"abcd")
    assert memory.read(0xFFE, 4) == b"abcd"
    for attempt in (
        lambda: memory.write(0xFFE, b"wxyz"),
        lambda: memory.store(0x1000, 8, 0),
        lambda: memory.zero(0, 0x2000),
    ):
        with pytest.raises(MemoryRangeError, match="is not all RAM that can be written"):
            attempt()
    assert memory.read(0xFFE, 4) == b"abcd"
    assert memory.find(0x1000, 8) and memory.find(0x1000, 8, write=True) is None
    memory.clear()
    assert memory.read(0xFFE, 4) == b"\0\0cd"


def test_protection_comes_and_goes() -> None:
    """Told once for each change, with the slot."""
    memory = Memory()
    slot = memory.add(0x1000, 0x1000)
    changes: list[tuple[int, bool]] = []
    memory.on_protect = lambda slot, readonly: changes.append((slot.base, readonly))
    for readonly in (False, True, True, False):
        memory.protect(slot, readonly)
        assert (memory.find(0x1000, write=True) is None) == readonly
    assert changes == [(0x1000, True), (0x1000, False)]


@given(st.integers(0, 0x3000), st.integers(0, 0x3000))
def test_zeros_are_written_just_where_asked(start: int, length: int) -> None:
    """Whole pages and parts, and across two slots."""
    memory = Memory()
    memory.add(0, 0x2000)
    memory.add(0x2000, 0x2000)
    memory.write(0, b"\xff" * 0x4000)
    length = min(length, 0x4000 - start)
    memory.zero(start, length)
    assert memory.read(0, 0x4000) == b"\xff" * start + bytes(length) + b"\xff" * (0x4000 - start - length)


def test_what_writes_for_the_guest_treats_a_rom_as_the_cpu_does() -> None:
    """A store by a guest virtual address and DMA reach the bus; their reads the ROM."""
    machine = Machine()
    machine.memory.add(0, 0x1000, readonly=True)
    machine.memory.program(0, b"\x01\x02\x03\x04")
    taken: list[tuple[int, int, int]] = []
    device = Device()
    device.write = lambda offset, size, value: taken.append((offset, size, value))  # type: ignore[method-assign]
    vcpu, dma = machine.vcpus[0], machine.dma(Device())
    assert vcpu.store(2, 4, 0xAABBCCDD) == MmioExit(2, 4, True, 0xAABBCCDD)
    vcpu.abandon()
    machine.mmio.attach(device, 0, 0x1000)
    assert vcpu.store(2, 4, 0xAABBCCDD) is None and vcpu.load(0, 4) == 0x04030201
    dma.write(0, b"abc")
    assert taken == [(2, 4, 0xAABBCCDD), (0, 2, 0x6261), (2, 1, 0x63)]
    assert dma.read(0, 4) == b"\x01\x02\x03\x04"


@pytest.mark.parametrize("base", [0, 0x1000, 0x1FF000, 0x100000000, 0xFFFC0000])
def test_the_hosts_address_is_at_the_guests_place_within_a_large_page(base: int) -> None:
    """Only then can KVM map RAM by large pages; the slot is whole all the same, and alone in its place."""
    memory = Memory()
    slot = memory.add(base, 0x3000)
    assert (slot.host - base) % LARGE_PAGE_SIZE == 0
    memory.write(base, b"\x55" * 0x3000)
    assert ctypes.string_at(slot.host, 0x3000) == b"\x55" * 0x3000
    memory.zero(base + 1, 0x2FFE)
    assert memory.read(base, 0x3000) == b"\x55" + bytes(0x2FFE) + b"\x55"
    memory.clear()
    assert memory.read(base, 0x3000) == bytes(0x3000)


def test_large_pages_only_where_they_are_asked_for() -> None:
    """The host's kernel says of each mapping what it was advised; RAM of 4 MiB holds whole large pages."""

    def is_advised(slot: Slot) -> bool:
        areas = Path("/proc/self/smaps").read_text().split("\nVmFlags:")
        for area, flags in itertools.pairwise(areas):
            found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", area, re.MULTILINE)
            if found and int(found[-1][0], 16) <= slot.host < int(found[-1][1], 16):
                return " hg" in flags.split("\n", 1)[0]
        raise AssertionError(f"{slot.host:#x} is in no mapping")

    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("the host's kernel has no large pages to give")
    memory = Memory()
    plain = memory.add(0, 4 << 20)
    memory.large_pages = True
    assert (is_advised(plain), is_advised(memory.add(1 << 30, 4 << 20))) == (False, True)
