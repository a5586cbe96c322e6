"""boot/image.py and its neighbours: what a file is taken for, PVH and flat images, the 32-bit Linux protocol."""

import gzip
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import MIB, Load, elf, multiboot, multiboot2, note
from test_boot_linux import IMAGE, bzimage

from iobus.boot import handover
from iobus.boot.flat import FlatImage
from iobus.boot.handover import BootError, E820Entry, Handover, Module, Room, e820
from iobus.boot.image import LinuxImage, read_image, read_module
from iobus.boot.linux import LinuxKernel
from iobus.boot.multiboot import MultibootImage
from iobus.boot.multiboot2 import Multiboot2Image
from iobus.boot.pvh import PvhImage
from iobus.memory import Memory

ENTRY = note(b"Xen", 18, struct.pack("<I", MIB + 0x40))
PVH = elf([Load(MIB, b"\xf4" * 100, 5000, 0xFFFFFFFF81000000)], 0xFFFFFFFF81000000, bits=64, notes=ENTRY)
MODULES = (Module("one", b"1" * 5000, "a=1 b"), Module("two", b"2"))


def ram(mebibytes: int = 16) -> Memory:
    memory = Memory()
    memory.add(0, mebibytes * MIB)
    return memory


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "image"
    path.write_bytes(data)
    return path


# What a file is.


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bzimage(), LinuxImage),
        (bzimage(xloadflags=0), LinuxImage),
        (elf([Load(MIB, multiboot())], MIB), MultibootImage),
        (bytes(8) + multiboot(1 << 16, MIB, MIB, 0, 0, MIB), MultibootImage),
        (elf([Load(MIB, multiboot2())], MIB), Multiboot2Image),
        (elf([Load(MIB, multiboot() + bytes(4) + multiboot2())], MIB, notes=ENTRY), Multiboot2Image),
        (elf([Load(MIB, multiboot())], MIB, notes=ENTRY), MultibootImage),
        (PVH, PvhImage),
    ],
)
def test_an_image_boots_by_what_is_in_it(tmp_path: Path, data: bytes, kind: type) -> None:
    """Also where the file is compressed with gzip, in one member or two, with something behind it."""
    assert type(read_image(write(tmp_path, data))) is kind
    packed = gzip.compress(data[:100]) + gzip.compress(data[100:]) + b"padding"
    assert type(read_image(write(tmp_path, packed))) is kind


def test_an_address_makes_any_file_a_flat_binary(tmp_path: Path) -> None:
    """What the user says counts, and the bytes are taken as they are."""
    packed = gzip.compress(PVH)
    image = read_image(write(tmp_path, packed), at=0x7C00)
    assert isinstance(image, FlatImage) and image.data == packed


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"image .*/image begins with b'' and is no Linux bzImage, .* give --at ADDRESS"),
        (b"#!/bin/sh\n", r"begins with b'#!/b'"),
        (elf([Load(MIB, b"x")], MIB), "neither a Multiboot header nor the note XEN_ELFNOTE_PHYS32_ENTRY"),
        (elf([Load(MIB, b"x")], MIB, notes=note(b"Xen", 17, bytes(4))), "neither a Multiboot header"),
        (elf([Load(MIB, b"x")], MIB, notes=note(b"GNU", 18, bytes(4))), "neither a Multiboot header"),
        (elf([Load(MIB, b"x")], MIB, notes=note(b"Xen", 18, bytes(2))), "neither a Multiboot header"),
        (elf([Load(MIB, b"x")], MIB, notes=ENTRY[:-1]), "neither a Multiboot header"),
        (elf([Load(MIB, b"x")], MIB, notes=note(b"Xen", 18, b"\xff" * 8)), "PVH entry at 0xffffffffffffffff; it must"),
        (elf([Load(MIB, b"x")], MIB, notes=bytes(2 << 20)), "has 2097152 bytes of notes; at most 1048576 are read"),
        (gzip.compress(PVH)[:-20], "truncated gzip file"),
        (gzip.compress(PVH)[:20] + bytes(50), "damaged gzip file|truncated gzip file"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    """One sentence that names the file and what was looked for."""
    with pytest.raises(BootError, match=says) as error:
        read_image(write(tmp_path, data))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, and what a small gzip file decompresses to: the limit holds before the memory is used."""
    monkeypatch.setattr(handover, "LARGEST_FILE", 1 << 20)
    path = tmp_path / "image"
    with path.open("wb") as file:
        os.truncate(file.fileno(), (1 << 20) + 1)
    with pytest.raises(BootError, match=r"image .* has 1048577 bytes; at most 1048576 can be loaded"):
        read_image(path)
    with pytest.raises(BootError, match="decompresses to more than the 1048576 bytes"):
        read_image(write(tmp_path, gzip.compress(bytes(2 << 20))))
    assert isinstance(read_image(write(tmp_path, gzip.compress(PVH.ljust(1 << 20, b"\0")))), PvhImage)


def test_a_module_is_a_file_and_a_command_line(tmp_path: Path) -> None:
    """What follows the first comma is the command line; the name is without directories."""
    path = write(tmp_path, b"data")
    assert read_module(str(path)) == Module("image", b"data")
    assert read_module(f"{path},a=1,2 b") == Module("image", b"data", "a=1,2 b")
    assert read_module(f"{path},a=1,2 b").text == "image a=1,2 b"
    with pytest.raises(BootError, match=r"module .*/none does not exist"):
        read_module(str(tmp_path / "none"))


# PVH.


def test_pvh_is_entered_at_its_note_with_the_start_info_in_ebx() -> None:
    """Xen's pvh.pandoc and start_info.h: machine state, version 1, memory map, modules, command line, RSDP."""
    memory = ram()
    memory.write(MIB, b"\xff" * 5000)
    image = PvhImage.read(PVH, Path("vmlinux"))
    registers = image.load(memory, Handover(e820(memory), "quiet", MODULES, b"", 0xE0000))
    assert memory.read(MIB, 5000) == (b"\xf4" * 100).ljust(5000, b"\0")
    assert registers.rip == MIB + 0x40
    assert registers.cr0 & 0x80000001 == 1 and not registers.cr4 and not registers.efer and registers.rflags == 2
    assert (registers.cs.base, registers.cs.limit, registers.cs.access) == (0, 0xFFFFFFFF, 0xC09B)
    assert (registers.tr.base, registers.tr.limit, registers.tr.access) == (0, 0x67, 0x8B)
    words = struct.unpack("<IIIIQQQQII", memory.read(registers.rbx, 56))
    magic, version, flags, modules, modules_at, text, rsdp, map_at, entries, reserved = words
    assert (magic, version, flags, modules, rsdp, reserved) == (0x336EC578, 1, 0, 2, 0xE0000, 0)
    assert memory.read(text, 6) == b"quiet\0"
    ranges = list(struct.iter_unpack("<QQII", memory.read(map_at, 24 * entries)))
    assert ranges == [(*entry, 0) for entry in e820(memory)]
    for number, module in enumerate(MODULES):
        at, size, line, zero = struct.unpack("<4Q", memory.read(modules_at + 32 * number, 32))
        assert memory.read(at, size) == module.data and at % 4096 == 0 and zero == 0
        assert memory.read(line, len(module.command_line) + 1) == module.command_line.encode() + b"\0"


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(PVH) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(PVH)))
def test_no_pvh_image_makes_it_fail_otherwise(changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever bytes are changed or cut off: loaded into RAM, or a `BootError` and nothing written."""
    broken = bytearray(PVH)
    for offset, value in changes:
        broken[offset] = value
    memory = ram()
    try:
        image = PvhImage.read(bytes(broken[: cut if cut % 2 else None]), Path("vmlinux"))
        registers = image.load(memory, Handover(e820(memory), "x", MODULES))
    except BootError as exc:
        assert "vmlinux" in str(exc) and memory.read(0, 16 * MIB) == bytes(16 * MIB)
    else:
        assert memory.find(registers.rbx, 56)


# Flat.


@pytest.mark.parametrize(
    ("address", "selector", "offset"),
    [(0x7C00, 0, 0x7C00), (0xFFF0, 0, 0xFFF0), (0x10000, 0x1000, 0), (0x9FB00, 0x9000, 0xFB00)],
)
def test_a_flat_image_below_1_mib_is_entered_in_real_mode(address: int, selector: int, offset: int) -> None:
    """A boot sector at 0000:7C00, as a BIOS does it; all other segments at 0, interrupt vectors at 0."""
    memory = ram()
    registers = FlatImage.read(b"code", Path("x"), address).load(memory, Handover(e820(memory)))
    assert memory.read(address, 4) == b"code"
    assert (registers.cs.selector, registers.cs.base, registers.rip) == (selector, selector << 4, offset)
    assert not registers.cr0 & 1 and not registers.rflags & 0x200
    assert (registers.idt_base, registers.idt_limit) == (0, 0x3FF)
    assert registers.ds.base == registers.ss.base == 0


def test_a_flat_image_from_1_mib_on_is_entered_in_protected_mode() -> None:
    """Flat 32-bit segments, paging off."""
    memory = ram()
    registers = FlatImage.read(b"code", Path("x"), 2 * MIB).load(memory, Handover(e820(memory)))
    assert memory.read(2 * MIB, 4) == b"code" and registers.rip == 2 * MIB
    assert registers.cr0 & 0x80000001 == 1 and registers.cs.access == 0xC09B


@pytest.mark.parametrize(
    ("size", "address", "options", "says"),
    [
        (0, 0x7C00, {}, "is empty"),
        (4, 0xA0000, {}, "is not in RAM"),
        (4, 16 * MIB - 3, {}, "is not in RAM"),
        (0x20000, 0x90000, {}, "is not in RAM"),
        (4, 0x7C00, {"command_line": "x"}, "is given a command line, of which it could not know"),
        (4, 0x7C00, {"modules": MODULES}, "is given modules"),
    ],
)
def test_flat_images_that_cannot_be(size: int, address: int, options: dict[str, object], says: str) -> None:
    """Each is said in a sentence."""
    memory = ram()
    with pytest.raises(BootError, match=f"image x .*{says}|image x: .*{says}"):
        image = FlatImage.read(bytes(size), Path("x"), address)
        image.load(memory, Handover(e820(memory), **options))  # type: ignore[arg-type]


# Linux.


def test_a_32_bit_kernel_is_entered_by_the_32_bit_protocol(tmp_path: Path) -> None:
    """boot.rst, "32-bit Boot Protocol": at its first byte, CS 0x10 and DS 0x18 flat, paging off, ESI the zero page."""
    memory = ram(64)
    entry = LinuxKernel.parse(bzimage(xloadflags=0), Path("bzImage")).load(memory, e820=e820(memory))
    registers = entry.registers()
    assert registers.rip == 16 * MIB and memory.read(16 * MIB, len(IMAGE)) == IMAGE
    assert memory.read(registers.rsi + 0x202, 4) == b"HdrS"
    assert registers.cr0 & 0x80000001 == 1 and not registers.cr4 and not registers.efer
    assert (registers.cs.selector, registers.cs.access) == (0x10, 0xC09B)
    assert (registers.ds.selector, registers.es.selector, registers.ss.selector) == (0x18, 0x18, 0x18)
    assert memory.load(registers.gdt_base + 0x10, 8) == 0x00CF9B000000FFFF
    assert memory.load(registers.gdt_base + 0x18, 8) == 0x00CF93000000FFFF
    assert registers.rbp == registers.rdi == registers.rbx == 0 and not registers.rflags & 0x200


def test_the_initrd_of_a_kernel_is_its_only_module() -> None:
    """A second one, and a command line for it, are refused by name."""
    memory = ram(64)
    image = LinuxImage.read(bzimage(), Path("bzImage"))
    registers = image.load(memory, Handover(e820(memory), "quiet", MODULES[1:]))
    at, size = struct.unpack("<II", memory.read(registers.rsi + 0x218, 8))
    assert memory.read(at, size) == MODULES[1].data
    with pytest.raises(BootError, match="takes one module, its initrd, and was given one, two"):
        image.load(memory, Handover(e820(memory), "quiet", MODULES))
    with pytest.raises(BootError, match=r"takes no command line for its initrd one \('a=1 b'\)"):
        image.load(memory, Handover(e820(memory), "quiet", MODULES[:1]))


# Room.


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from((1, 2, 4, 8)), st.integers(0, 60), st.booleans()), max_size=12
    ),
)
def test_room_is_given_to_one_at_a_time(
    ranges: list[tuple[int, int]], wishes: list[tuple[int, int, int, bool]]
) -> None:
    """What is placed lies aligned in usable RAM and overlaps nothing; what is refused had no place left."""
    usable: set[int] = set()
    entries = []
    for base, size in ranges:
        if not usable & set(range(base - 1, base + size + 1)):  # disjoint, as a memory map is
            usable |= set(range(base, base + size))
            entries.append(E820Entry(base, size, 1))
    room, taken = Room([*entries, E820Entry(0, 100, 2)], "it"), set[int]()
    for size, align, low, highest in wishes:
        places = range(-(-low // align) * align, 64, align)
        fits = [at for at in places if set(range(at, at + size)) <= usable - taken]
        try:
            at = room.place(size, "a thing", align=align, low=low, high=64, highest=highest)
        except BootError:
            assert not fits or size == 0
        else:
            assert size == 0 or at == (fits[-1] if highest else fits[0])
            taken |= set(range(at, at + size))
