"""boot/multiboot.py and multiboot2.py against their specifications, with images made here."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import MIB, MULTIBOOT, MULTIBOOT2, Load, elf, multiboot, multiboot2, tag

from iobus.boot.handover import BootError, E820Entry, Handover, Module, e820
from iobus.boot.multiboot import MultibootImage
from iobus.boot.multiboot2 import Multiboot2Image
from iobus.cpu_registers import Registers
from iobus.memory import Memory

CODE = b"\xf4" * 100
PATH = Path("/images/kernel.elf")
MODULES = (Module("one", b"1" * 5000, "a=1 b"), Module("two", b"2"))


def ram(mebibytes: int = 16) -> Memory:
    memory = Memory()
    memory.add(0, mebibytes * MIB)
    return memory


def load(image: bytes, memory: Memory, command_line: str = "", *modules: Module) -> Registers:
    read: Callable[[bytes, Path], MultibootImage | Multiboot2Image] = MultibootImage.read
    if multiboot2()[:4] in image:
        read = Multiboot2Image.read
    handover = Handover(e820(memory), command_line, modules, b"RSD PTR " + bytes(28), 0xE0000)
    return read(image, PATH).load(memory, handover)


def assert_entry_state(registers: Registers, memory: Memory) -> None:
    """3.2 and 3.5, "Machine state": flat 32-bit segments, paging off, interrupts off, and a GDT that agrees."""
    assert registers.cs.base == 0 and registers.cs.limit == 0xFFFFFFFF and registers.cs.access == 0xC09B
    for name in ("ds", "es", "fs", "gs", "ss"):
        segment = getattr(registers, name)
        assert (segment.base, segment.limit, segment.access) == (0, 0xFFFFFFFF, 0xC093)
        assert memory.load(registers.gdt_base + segment.selector, 8) == 0x00CF93000000FFFF
    assert memory.load(registers.gdt_base + registers.cs.selector, 8) == 0x00CF9B000000FFFF
    assert registers.cr0 & 0x80000001 == 1 and not registers.cr4 and not registers.efer
    assert not registers.rflags & 0x20200  # VM, IF


def string(memory: Memory, at: int) -> str:
    return memory.read(at, 256).split(b"\0")[0].decode()


def info(memory: Memory, at: int) -> dict[str, int]:
    """The information of Multiboot 1, by the names of 3.3."""
    names = ("flags", "mem_lower", "mem_upper", "boot_device", "cmdline", "mods_count", "mods_addr")
    fields = dict(zip(names, struct.unpack("<7I", memory.read(at, 28)), strict=True))
    fields["mmap_length"], fields["mmap_addr"] = struct.unpack("<II", memory.read(at + 44, 8))
    fields["boot_loader_name"] = memory.load(at + 64, 4)
    return fields


# Multiboot 1.


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_are_at_their_physical_addresses_and_the_rest_of_them_is_zero(bits: int) -> None:
    """The entry is a virtual address and is made physical; EAX has the magic number."""
    image = elf([Load(2 * MIB, multiboot() + CODE, 8192, 0xC0200000)], 0xC020000C, bits=bits)
    memory = ram()
    memory.write(2 * MIB, b"\xff" * 8192)
    registers = load(image, memory)
    assert memory.read(2 * MIB, 8192) == (multiboot() + CODE).ljust(8192, b"\0")
    assert (registers.rip, registers.rax) == (2 * MIB + 12, 0x2BADB002)
    assert_entry_state(registers, memory)


def test_what_a_guest_is_told() -> None:
    """3.3: memory sizes in KiB, the command line beginning with the image's name, memory map, modules, loader."""
    memory = ram()
    registers = load(elf([Load(MIB, multiboot(3) + CODE)], MIB + 12), memory, "root=x quiet", *MODULES)
    told = info(memory, registers.rbx)
    assert told["flags"] == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (told["mem_lower"], told["mem_upper"]) == (639, 15 * 1024)
    assert string(memory, told["cmdline"]) == "kernel.elf root=x quiet"
    assert string(memory, told["boot_loader_name"]) == "iobus"
    at, ranges = told["mmap_addr"], []
    while at < told["mmap_addr"] + told["mmap_length"]:
        size, base, length, kind = struct.unpack("<IQQI", memory.read(at, 24))
        ranges.append(E820Entry(base, length, kind))
        at += size + 4
    assert ranges == e820(memory)
    assert told["mods_count"] == 2
    for number, module in enumerate(MODULES):
        start, end, text, zero = struct.unpack("<4I", memory.read(told["mods_addr"] + 16 * number, 16))
        assert memory.read(start, end - start) == module.data
        assert start % 4096 == 0 and start >= MIB + 4096
        assert string(memory, text) == f"{module.name} {module.command_line}".rstrip()
        assert zero == 0
    assert registers.rbx >= 0x9000  # where firmware's data and other CPUs' first code are left alone


def test_addresses_in_the_header_come_before_elf_headers() -> None:
    """Flag 16: load_addr, load_end_addr and bss_end_addr tell what is loaded, entry_addr where it is entered."""
    header = multiboot(1 << 16, MIB + 0x20, MIB + 0x10, MIB + 0x60, MIB + 0x100, MIB + 0x55)
    image = bytes(32) + header + bytes(range(200))
    memory = ram()
    memory.write(MIB, b"\xff" * 0x200)
    registers = load(image, memory)
    loaded = image[0x10:0x60]
    assert memory.read(MIB + 0x10, 0x200 - 0x10) == loaded + bytes(0x100 - 0x60) + b"\xff" * 0x100
    assert registers.rip == MIB + 0x55


def test_no_end_of_the_image_is_the_files_end_and_no_end_of_bss_no_bss() -> None:
    """load_end_addr and bss_end_addr of 0."""
    image = multiboot(1 << 16, MIB, MIB, 0, 0, MIB + 32) + CODE
    memory = ram()
    memory.write(MIB, b"\xff" * 200)
    load(image, memory)
    assert memory.read(MIB, 200) == image.ljust(200, b"\xff")


def test_modules_go_below_the_image_where_there_is_no_room_above() -> None:
    """An image at the top of RAM: its modules are elsewhere in RAM, on pages of their own."""
    memory = ram()
    registers = load(elf([Load(15 * MIB, multiboot() + CODE, MIB)], 15 * MIB), memory, "", *MODULES)
    told = info(memory, registers.rbx)
    start, end = struct.unpack("<II", memory.read(told["mods_addr"], 8))
    assert start >= MIB and end <= 15 * MIB and memory.read(start, end - start) == MODULES[0].data


# Multiboot 2.


def tags(memory: Memory, at: int) -> Iterator[tuple[int, bytes]]:
    """The information's tags up to the end tag, which must be where total_size says."""
    total, reserved = struct.unpack("<II", memory.read(at, 8))
    assert at % 8 == 0 and reserved == 0
    here = at + 8
    while True:
        kind, size = struct.unpack("<II", memory.read(here, 8))
        if kind == 0:
            assert here + 8 == at + total and size == 8
            return
        yield kind, memory.read(here + 8, size - 8)
        here += -(-size // 8) * 8


def test_what_a_guest_is_told_by_multiboot_2() -> None:
    """3.6: each tag that is given, and EAX."""
    memory = ram()
    registers = load(elf([Load(MIB, multiboot2() + CODE)], MIB), memory, "quiet", *MODULES)
    assert (registers.rip, registers.rax) == (MIB, 0x36D76289)
    assert_entry_state(registers, memory)
    found = list(tags(memory, registers.rbx))
    told = dict(found)
    assert told[1] == b"kernel.elf quiet\0" and told[2] == b"iobus\0"
    assert struct.unpack("<II", told[4]) == (639, 15 * 1024)
    assert struct.unpack("<II", told[6][:8]) == (24, 0)
    assert [E820Entry(*entry[:3]) for entry in struct.iter_unpack("<QQII", told[6][8:])] == e820(memory)
    assert told[14] == b"RSD PTR " + bytes(12) and told[15] == b"RSD PTR " + bytes(28)
    modules = [body for kind, body in found if kind == 3]
    for module, body in zip(MODULES, modules, strict=True):
        start, end = struct.unpack("<II", body[:8])
        assert memory.read(start, end - start) == module.data and start % 4096 == 0
        assert body[8:] == f"{module.name} {module.command_line}".rstrip().encode() + b"\0"
    assert 21 not in told  # the load base is for images that can be moved


def test_the_entry_address_tag_comes_before_the_elf_header() -> None:
    """3.1.5: and with an address tag (3.1.4) the image needs no ELF header."""
    memory = ram()
    entry = tag(3, struct.pack("<I", MIB + 0x40))
    assert load(elf([Load(MIB, multiboot2(entry) + CODE)], MIB), memory).rip == MIB + 0x40
    addresses = tag(2, struct.pack("<4I", 2 * MIB, 2 * MIB, 0, 2 * MIB + 0x1000))
    image = multiboot2(addresses, tag(3, struct.pack("<I", 2 * MIB + 0x50))) + CODE
    memory.write(2 * MIB, b"\xff" * 0x1000)
    assert load(image, memory).rip == 2 * MIB + 0x50
    assert memory.read(2 * MIB, 0x1000) == image.ljust(0x1000, b"\0")


@pytest.mark.parametrize(
    ("minimum", "maximum", "preference", "at"),
    [
        (0, 0xFFFFFFFF, 0, MIB),  # no preference: where it is linked
        (4 * MIB, 0xFFFFFFFF, 0, 4 * MIB),  # not there, so the lowest place
        (3 * MIB + 5, 0xFFFFFFFF, 1, 4 * MIB),
        (MIB, 0xFFFFFFFF, 2, 14 * MIB),
        (MIB, 8 * MIB, 2, 6 * MIB),  # max_addr is the highest address of the image's last byte
        (MIB, 8 * MIB - 2, 2, 4 * MIB),
    ],
)
def test_a_relocatable_image_goes_where_its_tag_wants_it(minimum: int, maximum: int, preference: int, at: int) -> None:
    """3.1.14: min_addr, max_addr, align and preference; tag 21 of the information says where it is."""
    relocatable = tag(10, struct.pack("<4I", minimum, maximum, 2 * MIB, preference))
    memory = ram()
    registers = load(elf([Load(MIB, multiboot2(relocatable) + CODE, 2 * MIB)], MIB + 0x80), memory)
    assert registers.rip == at + 0x80
    assert memory.read(at, 4) == multiboot2()[:4]
    assert dict(tags(memory, registers.rbx))[21] == struct.pack("<I", at)


# What cannot be booted.

HERE = [Load(MIB, multiboot() + CODE)]


def at_2(*tags_: bytes, **options: int) -> bytes:
    return elf([Load(MIB, multiboot2(*tags_, **options) + CODE)], MIB)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (bytes(10000), "has no Multiboot header in its first 8192 bytes"),
        (bytes(8192 - 8) + multiboot(), "has no Multiboot header"),
        (elf([Load(MIB, multiboot(1 << 5) + CODE)], MIB), "requires features that no loader knows: flags 0x20"),
        (multiboot() + CODE, "is no ELF file and its header has no addresses"),
        (multiboot(1 << 16, 1, 2, 3), "is truncated: it ends at 24 bytes"),
        (multiboot(1 << 16, MIB, MIB + 4, 0, 0, MIB), "would begin before the file does"),
        (multiboot(1 << 16, MIB + 4, MIB, 0, 0, MIB), "would begin before the file does"),
        (multiboot(1 << 16, MIB, MIB, MIB + 1000, 0, MIB), r"says that \[0x100000, 0x1003e8\) is loaded"),
        (multiboot(1 << 16, MIB, MIB, MIB, 0, MIB), r"says that \[0x100000, 0x100000\) is loaded"),
        (multiboot(1 << 16, MIB, MIB, MIB + 32, MIB + 31, MIB), "its bss ends at 0x10001f, inside what is loaded"),
        (elf(HERE, MIB, machine=40), "is of type 2 for machine 40; want"),
        (elf(HERE, MIB, e_type=1), "is of type 1 for machine 3; want an executable"),
        (elf(HERE, MIB, e_phnum=100), "100 program headers of 32 bytes at 0x34 do not fit"),
        (elf(HERE, MIB, e_phnum=0xFFFF), "65535 program headers"),
        (elf(HERE, MIB, e_phentsize=8), "1 program headers of 8 bytes"),
        (elf(HERE, MIB, e_phoff=0xFFFFFFF0), "at 0xfffffff0 do not fit"),
        (elf(HERE, MIB)[:-1], "segment 0 has 112 bytes at 0x60 of the file and 112 in memory; the file has 207 bytes"),
        (elf([Load(MIB, multiboot() + CODE, 10)], MIB), "segment 0 has 112 bytes at 0x60 of the file and 10 in memory"),
        (multiboot() + elf([], MIB), "is no ELF file"),
        (elf([], MIB) + multiboot(), "has no segment to load"),
        (elf([Load(15 * MIB, multiboot() + CODE, 2 * MIB)], MIB), r"at \[0xf00000, 0x1100000\) is not in RAM; usable"),
        (elf([Load(0x9F000, multiboot() + bytes(4096))], MIB), r"at \[0x9f000, 0xa000c\) is not in RAM"),
        (elf([*HERE, Load(MIB + 111, b"x")], MIB), r"\[0x10006f, 0x100070\) overlaps what is at \[0x100000,"),
        (elf([*HERE, Load(MIB - 4, b"x" * 8)], MIB), "is not in RAM"),
        (elf([Load(1 << 60, multiboot() + CODE, 1 << 60)], MIB, bits=64), "is not in RAM"),
        (at_2(architecture=4), "is for architecture 4 of the specification; want 0, i386"),
        (at_2(tag(1, struct.pack("<II", 6, 8))), "requires information of type 8"),
        (at_2(tag(7)), "requires what its header tag of type 7 is for"),
        (at_2(tag(2, struct.pack("<4I", MIB, MIB, 0, 0))), "has an address tag and no entry address tag"),
        (multiboot2() + CODE, "is no ELF file and its header has no address tag"),
        (at_2(tag(2, size=12)), "has a header tag of type 2 and 12 bytes"),
        (at_2(tag(6, size=4)), "has a header tag of type 6 and 4 bytes"),
        (at_2(tag(6, size=1 << 31)), "has a header tag of type 6 and 2147483648 bytes"),
        (at_2(tag(10, struct.pack("<4I", MIB, 0xFFFFFFFF, 3, 0))), "to be aligned to 0x3, which is no power of 2"),
        (at_2(tag(10, struct.pack("<4I", MIB, MIB + 8, 1, 0))), "there is no room for the image"),
        (struct.pack("<4I", MULTIBOOT2, 0, 1 << 20, -(MULTIBOOT2 + (1 << 20)) & 0xFFFFFFFF), "header of 1048576 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_booted_is_said_in_a_sentence(image: bytes, says: str) -> None:
    """It names the file and the value, and nothing was written."""
    memory = ram()
    with pytest.raises(BootError, match=says) as error:
        load(image, memory)
    assert str(PATH) in str(error.value) and "\n" not in str(error.value)
    assert memory.read(0, 16 * MIB) == bytes(16 * MIB)


def test_optional_tags_that_are_not_known_are_passed_over() -> None:
    """3.1.1: only a tag without the flag must be understood."""
    information = tag(1, struct.pack("<II", 6, 8), optional=True)
    assert load(at_2(information, tag(99, b"?", optional=True), tag(5, bytes(12))), ram()).rip == MIB


def test_what_is_handed_over_must_fit_too() -> None:
    """A module larger than RAM, and strings with a NUL in them."""
    image = elf(HERE, MIB)
    with pytest.raises(BootError, match="no room for module big of 16777216 bytes"):
        load(image, ram(), "", Module("big", bytes(16 * MIB)))
    with pytest.raises(BootError, match="the command line has a NUL character at 12; drop it"):
        load(image, ram(), "x\0y")
    with pytest.raises(BootError, match="command line of module m has a NUL"):
        load(image, ram(), "", Module("m", b"", "\0"))


WHOLE = [
    elf([Load(MIB, multiboot(3) + CODE, 5000), Load(2 * MIB, CODE, virtual=0xC0200000)], MIB),
    elf([Load(MIB, multiboot(3) + CODE, 5000), Load(2 * MIB, CODE)], MIB, bits=64, notes=bytes(32)),
    bytes(16) + multiboot(1 << 16, MIB + 16, MIB, MIB + 100, MIB + 1000, MIB + 64) + CODE,
    elf([Load(MIB, multiboot2(tag(1, bytes(8)), tag(10, struct.pack("<4I", MIB, 8 * MIB, 4096, 2))) + CODE)], MIB),
    multiboot2(tag(2, struct.pack("<4I", MIB, MIB, 0, MIB + 5000)), tag(3, struct.pack("<I", MIB))) + CODE,
]


@settings(max_examples=400)
@given(st.sampled_from(WHOLE), st.data())
def test_no_image_makes_it_fail_otherwise(image: bytes, data: st.DataObject) -> None:
    """Whatever bytes are changed or cut off, an image is loaded into RAM or refused with a `BootError`."""
    broken = bytearray(image)
    values = st.sampled_from((0, 1, 2, 0x7F, 0x80, 0xFF)) | st.integers(0, 255)
    for offset, value in data.draw(st.lists(st.tuples(st.integers(0, len(image) - 1), values), max_size=6)):
        broken[offset] = value
    words = st.tuples(st.integers(0, len(image) - 4), st.sampled_from((0, MIB, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF0000)))
    for offset, word in data.draw(st.lists(words, max_size=2)):
        struct.pack_into("<I", broken, offset, word)
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(image))) :]
    memory = ram()
    read: Callable[[bytes, Path], MultibootImage | Multiboot2Image] = MultibootImage.read
    if struct.pack("<I", MULTIBOOT) not in image:
        read = Multiboot2Image.read
    try:
        made = read(bytes(broken), PATH)
        registers = made.load(memory, Handover(e820(memory), "x", MODULES))
    except BootError as exc:
        assert str(PATH) in str(exc)
        assert memory.read(0, 16 * MIB) == bytes(16 * MIB)
    else:
        assert memory.find(registers.rbx) and memory.find(registers.gdt_base)
