"""boot/linux.py against boot.rst and zero-page.rst, with kernels made here; and once with Debian's, on QEMU's CPU."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iobus.boot.debian import GuestUnavailableError, busybox, cloud_kernel
from iobus.boot.handover import E820_RAM, E820_RESERVED, BootError, E820Entry, e820
from iobus.boot.initrd import busybox_initrd
from iobus.boot.linux import EntryState, LinuxKernel, read_initrd
from iobus.memory import Memory
from iobus.pc import layout

MIB = 1 << 20
SETUP_SECTS = 3
IMAGE = bytes(range(256)) * 20

# Offsets of boot.rst, "The Real-Mode Kernel Header", and the width of each field.
FIELDS = {
    "setup_sects": (0x1F1, "B"), "syssize": (0x1F4, "I"), "vid_mode": (0x1FA, "H"), "boot_flag": (0x1FE, "H"),
    "jump": (0x200, "H"), "header": (0x202, "4s"), "version": (0x206, "H"), "type_of_loader": (0x210, "B"),
    "loadflags": (0x211, "B"), "code32_start": (0x214, "I"), "ramdisk_image": (0x218, "I"),
    "ramdisk_size": (0x21C, "I"), "cmd_line_ptr": (0x228, "I"), "initrd_addr_max": (0x22C, "I"),
    "kernel_alignment": (0x230, "I"), "relocatable_kernel": (0x234, "B"), "xloadflags": (0x236, "H"),
    "cmdline_size": (0x238, "I"), "setup_data": (0x250, "Q"), "pref_address": (0x258, "Q"), "init_size": (0x260, "I"),
}  # fmt: skip


def bzimage(image: bytes = IMAGE, **fields: object) -> bytes:
    """A kernel file as Linux 6.1 makes them, but small; `fields` replace its header's."""
    data = bytearray(512 * (SETUP_SECTS + 1)) + image
    header: dict[str, object] = {
        "setup_sects": SETUP_SECTS, "syssize": (len(image) + 15) // 16, "boot_flag": 0xAA55, "jump": 0x6AEB,
        "header": b"HdrS", "version": 0x020F, "loadflags": 1, "code32_start": MIB, "initrd_addr_max": 0x7FFFFFFF,
        "kernel_alignment": 2 * MIB, "relocatable_kernel": 1, "xloadflags": 0x7F, "cmdline_size": 2047,
        "pref_address": 16 * MIB, "init_size": 8 * MIB,
    }  # fmt: skip
    for name, value in (header | fields).items():
        offset, kind = FIELDS[name]
        struct.pack_into(f"<{kind}", data, offset, value)
    return bytes(data)


def kernel(tmp_path: Path, image: bytes = IMAGE, **fields: object) -> LinuxKernel:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(image, **fields))
    return LinuxKernel.read(path)


def ram(mebibytes: int = 64) -> Memory:
    memory = Memory()
    memory.add(0, mebibytes * MIB)
    return memory


def param(memory: Memory, at: int, name: str) -> int:
    offset, kind = FIELDS[name]
    value: int = struct.unpack(f"<{kind}", memory.read(at + offset, struct.calcsize(kind)))[0]
    return value


def test_the_kernel_is_at_its_preferred_address_and_entered_at_0x200(tmp_path: Path) -> None:
    """boot.rst, "64-bit Boot Protocol": the protected-mode code whole, the entry 0x200 in, RSI the zero page."""
    memory = ram()
    entry = kernel(tmp_path).load(memory, e820=e820(memory))
    assert entry.rip == 16 * MIB + 0x200
    assert memory.read(16 * MIB, len(IMAGE)) == IMAGE
    assert memory.read(entry.rsi + 0x202, 4) == b"HdrS"
    assert entry.rflags & 0x200 == 0  # "interrupt must be disabled"
    assert memory.find(entry.rsp - 0x1000, 0x1000) and entry.rsp % 16 == 0


def test_the_zero_page_says_what_was_loaded(tmp_path: Path) -> None:
    """The setup header as in the file with the loader's fields filled, text mode 3, all else zero, sentinel too."""
    memory = ram()
    memory.write(0, b"\xcc" * layout.EBDA)  # whatever was there before
    made = kernel(tmp_path, setup_data=0)
    initrd = b"\x01" * 5000
    entry = made.load(
        memory, initrd=initrd, command_line="console=ttyS0 ä", acpi_rsdp=0xE0040, e820=[E820Entry(0, 64 * MIB, 1)]
    )
    page = memory.read(entry.rsi, 4096)
    assert param(memory, entry.rsi, "type_of_loader") == 0xFF  # no assigned ID
    assert param(memory, entry.rsi, "code32_start") == 16 * MIB
    assert param(memory, entry.rsi, "ramdisk_size") == 5000
    assert memory.read(param(memory, entry.rsi, "ramdisk_image"), 5000) == initrd
    text = "console=ttyS0 ä".encode()
    assert memory.read(param(memory, entry.rsi, "cmd_line_ptr"), len(text) + 1) == text + b"\0"
    assert param(memory, entry.rsi, "cmd_line_ptr") + len(text) < 0xA0000
    assert param(memory, entry.rsi, "vid_mode") == 0xFFFF
    for name in ("initrd_addr_max", "xloadflags", "init_size", "kernel_alignment", "pref_address", "version"):
        offset, kind = FIELDS[name]
        assert page[offset : offset + struct.calcsize(kind)] == bzimage()[offset : offset + struct.calcsize(kind)]
    assert struct.unpack_from("<Q", page, 0x070) == (0xE0040,)  # acpi_rsdp_addr
    assert page[0x1E8] == 1 and struct.unpack_from("<QQI", page, 0x2D0) == (0, 64 * MIB, 1)
    # screen_info: mode, columns, EGA's BX, lines, is a VGA, scan lines of a character; the cursor is at 0, 0
    assert struct.unpack_from("<6xBB2xH2xBBH", page) == (3, 80, 3, 25, 1, 16)
    assert not any(page[:6]) and not any(page[8:10]) and not any(page[12:14])
    header_end = 0x202 + 0x6A
    outside = page[0x12:0x70] + page[0x78:0x1E8] + page[0x1E9:0x1F1] + page[header_end:0x2D0] + page[0x2D0 + 20 :]
    assert not any(outside)


def test_without_an_initrd_its_fields_are_zero(tmp_path: Path) -> None:
    """ramdisk_image: "Leave at zero if there is no initial ramdisk/ramfs"; the command line is there, empty."""
    memory = ram()
    entry = kernel(tmp_path, ramdisk_image=7, ramdisk_size=7).load(memory, e820=e820(memory))
    assert param(memory, entry.rsi, "ramdisk_image") == param(memory, entry.rsi, "ramdisk_size") == 0
    assert memory.load(param(memory, entry.rsi, "cmd_line_ptr"), 1) == 0


def test_the_first_4_gib_are_identity_mapped(tmp_path: Path) -> None:
    """Walking the tables (SDM vol. 3A, section 4.5) turns any address below 4 GiB into itself, writable."""
    memory = ram()
    entry = kernel(tmp_path).load(memory, e820=e820(memory))
    assert entry.cr0 & (1 << 31 | 1) == 1 << 31 | 1 and entry.cr4 & 1 << 5  # PG, PE; PAE
    assert entry.efer & (1 << 8 | 1 << 10) == 1 << 8 | 1 << 10  # LME, LMA

    def walk(address: int) -> int | None:
        table = entry.cr3
        for shift in (39, 30, 21):
            item = memory.load(table + 8 * (address >> shift & 511), 8)
            if not item & 1:
                return None
            assert item & 2
            if item & 0x80:
                assert shift == 21  # no 1 GiB pages
                return (item & ~0x1FFFFF) + (address & 0x1FFFFF)
            table = item & ~0xFFF
        raise AssertionError("4 KiB pages")

    for address in (0, entry.rsi, 0x1FFFFF, entry.rip, 0x40000000, 0x7FFFFFFF, 0xBFFFFFFF, 0xFEE00000, 0xFFFFFFFF):
        assert walk(address) == address
    assert walk(1 << 32) is None and walk(1 << 39) is None and walk(511 << 39) is None


def test_the_gdt_has_flat_segments_at_0x10_and_0x18(tmp_path: Path) -> None:
    """boot.rst: __BOOT_CS(0x10) execute/read and __BOOT_DS(0x18) read/write, both 4G flat; CS is 64-bit code."""
    memory = ram()
    entry = kernel(tmp_path).load(memory, e820=e820(memory))
    assert (entry.cs, entry.ds) == (0x10, 0x18) and entry.gdt_limit >= 0x1F
    for selector, kind in ((entry.cs, 0xA), (entry.ds, 0x2)):
        item = memory.load(entry.gdt_base + selector, 8)
        assert item & 0xFFFF == 0xFFFF and item >> 48 & 0xF == 0xF and item >> 55 & 1  # limit, in 4 KiB units
        assert item >> 16 & 0xFFFFFF == 0 and item >> 56 == 0  # base
        assert item >> 40 & 0xE == kind and item >> 44 & 1 and item >> 47 & 1  # type, S, P
    assert memory.load(entry.gdt_base + entry.cs, 8) >> 53 & 3 == 1  # L set, D clear
    assert memory.load(entry.gdt_base, 8) == 0


def test_the_initrd_is_high_but_never_above_its_limit(tmp_path: Path) -> None:
    """At the end of low RAM, on a page; or where its last byte is at most initrd_addr_max."""
    for fields, top in (({}, 64 * MIB), ({"initrd_addr_max": 0x2FFFFFF}, 48 * MIB)):
        memory = ram()
        entry = kernel(tmp_path, **fields).load(memory, initrd=b"i" * 5000, e820=e820(memory))
        assert param(memory, entry.rsi, "ramdisk_image") == top - 2 * 4096


def test_the_initrd_avoids_the_kernel_and_goes_below_it_if_need_be(tmp_path: Path) -> None:
    """All of init_size is the kernel's: with RAM ending there the initrd goes below the kernel."""
    memory = ram(24)
    entry = kernel(tmp_path).load(memory, initrd=b"i" * 4096, e820=e820(memory))
    assert param(memory, entry.rsi, "ramdisk_image") == 16 * MIB - 4096
    with pytest.raises(BootError, match=rf"initrd for kernel .*vmlinuz is {16 * MIB} bytes.* is {15 * MIB} bytes"):
        kernel(tmp_path).load(ram(24), initrd=bytes(16 * MIB), e820=e820(memory))


def test_an_initrd_does_not_go_above_4_gib(tmp_path: Path) -> None:
    """With RAM on both sides of the hole, low RAM holds it: ramdisk_image has 32 bits."""
    memory = ram(32)
    memory.add(1 << 32, 16 * MIB)
    entry = kernel(tmp_path, initrd_addr_max=0xFFFFFFFF).load(memory, initrd=b"i", e820=e820(memory))
    assert param(memory, entry.rsi, "ramdisk_image") == 32 * MIB - 4096


def test_a_relocatable_kernel_goes_up_where_there_is_room(tmp_path: Path) -> None:
    """pref_address is no RAM here: the next address that is, aligned to kernel_alignment; the header says where."""
    memory = ram()
    entries = [E820Entry(0, 8 * MIB, E820_RAM), E820Entry(33 * MIB, 31 * MIB, E820_RAM)]
    entry = kernel(tmp_path).load(memory, e820=entries)
    assert entry.rip == 34 * MIB + 0x200
    assert param(memory, entry.rsi, "code32_start") == 34 * MIB
    with pytest.raises(BootError, match="no such room"):
        kernel(tmp_path, relocatable_kernel=0).load(memory, e820=entries)


@pytest.mark.parametrize("pref_address", [0, 0x10000])
def test_a_kernel_without_a_preference_is_at_1_mib(tmp_path: Path, pref_address: int) -> None:
    """loadflags bit 0: the protected-mode code is loaded at 0x100000, not where the boot parameters are."""
    memory = ram()
    made = kernel(tmp_path, pref_address=pref_address, relocatable_kernel=0)
    assert made.load(memory, e820=e820(memory)).rip == MIB + 0x200


def test_the_memory_that_is_advised_is_enough_for_the_initrd_too(tmp_path: Path) -> None:
    """Linux unpacks the initrd before it gives back the packed one: both are counted."""
    memory = ram(23)
    with pytest.raises(BootError, match=r"give the guest 28 MiB or more"):
        kernel(tmp_path).load(memory, initrd=bytes(2 * MIB), e820=e820(memory))


def test_too_little_memory_names_what_is_needed(tmp_path: Path) -> None:
    """pref_address + init_size must be RAM: a kernel that is loaded lower moves itself there all the same."""
    memory = ram(23)
    with pytest.raises(BootError, match=r"vmlinuz needs 0x800000 bytes of RAM from 0x1000000.*23 MiB.*give.* 24 MiB"):
        kernel(tmp_path).load(memory, e820=e820(memory))
    assert memory.read(0, 0x20000) == bytes(0x20000)  # nothing was written
    kernel(tmp_path).load(ram(24), e820=e820(ram(24)))
    with pytest.raises(BootError, match="needs RAM from 0 to 0x9fc00"):
        kernel(tmp_path).load(Memory(), e820=[])


def test_a_command_line_may_have_cmdline_size_bytes(tmp_path: Path) -> None:
    """ "At most cmdline_size characters", without the final zero; one more is refused, not cut off."""
    memory = ram()
    made = kernel(tmp_path, cmdline_size=10)
    made.load(memory, command_line="x" * 10, e820=e820(memory))
    with pytest.raises(BootError, match=r"vmlinuz is 11 bytes long; this kernel takes at most 10"):
        made.load(memory, command_line="x" * 11, e820=e820(memory))
    with pytest.raises(BootError, match=r"NUL character at 1"):
        made.load(memory, command_line="x\0y", e820=e820(memory))
    with pytest.raises(BootError, match="cannot take 129 e820 entries"):
        made.load(memory, e820=e820(memory) + [E820Entry(0, 0, 2)] * 125)


def test_the_memory_map_of_the_pc() -> None:
    """Usable RAM up to the EBDA and from 1 MiB; EBDA and BIOS area reserved; the hole below 4 GiB in none."""
    memory = Memory()
    memory.add(0, 0xC0000000 >> 4)
    memory.add(1 << 32, MIB)
    assert e820(memory) == [
        (0, 0x9FC00, E820_RAM),
        (0x9FC00, 0x400, E820_RESERVED),
        (0xE0000, 0x20000, E820_RESERVED),
        (MIB, (0xC0000000 >> 4) - MIB, E820_RAM),
        (1 << 32, MIB, E820_RAM),
    ]
    split = Memory()
    split.add(0, 0xA0000)
    split.add(0xE0000, 0x20000)
    split.add(MIB, MIB)
    assert [entry for entry in e820(split) if entry.kind == E820_RAM] == [(0, 0x9FC00, 1), (MIB, MIB, 1)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "only 0 bytes long"),
        (b"\x7fELF" + bytes(2000), r"no Linux bzImage, it is an ELF file such as vmlinux: .*0x0000.*should be 0xaa55"),
        (bytes(5000), r"signature b'\\x00"),
        (bzimage(boot_flag=0x55AA), "boot flag 0x55aa"),
        (bzimage(header=b"HDRS"), "signature b'HDRS'"),
        (bzimage(version=0x0209), r"boot protocol 2\.09; 2\.10 .* is needed"),
        (bzimage(loadflags=0), "is a zImage \\(loadflags 0x0"),
        (bzimage()[:-16], rf"truncated: it is {2048 + len(IMAGE) - 16} bytes long and its header says"),
        (bzimage()[:0x250], "truncated: it ends at 592 bytes"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    """One sentence that names the file and the value."""
    path = tmp_path / "vmlinuz-odd"
    path.write_bytes(data)
    with pytest.raises(BootError, match=f"kernel {path} .*{says}"):
        LinuxKernel.read(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a directory, no regular file, empty: each is said of the kernel and of the initrd."""
    os.mkfifo(tmp_path / "fifo")  # which nobody writes: opening it would wait for ever
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for read, what in ((LinuxKernel.read, "kernel"), (read_initrd, "initrd")):
        with pytest.raises(BootError, match=f"{what} {tmp_path}/none does not exist"):
            read(tmp_path / "none")
        with pytest.raises(BootError, match=f"{what} {tmp_path} is a directory"):
            read(tmp_path)
        with pytest.raises(BootError, match=f"{what} /dev/zero is no regular file"):
            read("/dev/zero")
        with pytest.raises(BootError, match=f"{what} {tmp_path}/fifo is no regular file"):
            read(tmp_path / "fifo")
        with pytest.raises(BootError, match=f"{what} {empty}/x cannot be read"):
            read(empty / "x")
    with pytest.raises(BootError, match=f"initrd {empty} is empty"):
        read_initrd(empty)
    empty.write_bytes(b"cpio")
    assert read_initrd(empty) == b"cpio"


def test_what_follows_the_code_in_the_file_is_not_loaded(tmp_path: Path) -> None:
    """syssize bounds the code: a signature appended to the file stays out; setup_sects 0 means 4."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage() + b"signature")
    assert LinuxKernel.read(path).image == IMAGE
    path.write_bytes(bzimage(setup_sects=0)[:2048] + bytes(512) + IMAGE)
    assert LinuxKernel.read(path).image == IMAGE


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(0x1F1, 0x264), st.integers(0, 255), max_size=12),
    st.integers(0, 6000),
    st.binary(max_size=5000),
)
def test_no_header_makes_it_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, bytes_at: dict[int, int], cut: int, initrd: bytes
) -> None:
    """Whatever a header says, a kernel is read and loaded, in RAM that the map gave, or refused with `BootError`."""
    data = bytearray(bzimage())
    for offset, value in bytes_at.items():
        data[offset] = value
    path = tmp_path_factory.getbasetemp() / "vmlinuz-fuzz"
    path.write_bytes(data[: len(data) - cut if cut > 3000 else len(data)])
    memory = ram(32)
    try:
        entry = LinuxKernel.read(path).load(memory, initrd=initrd, command_line="quiet", e820=e820(memory))
    except BootError as exc:
        assert "vmlinuz-fuzz" in str(exc)
    else:
        assert memory.find(entry.rip) and entry.rip >= MIB + 0x200


def firmware(entry: EntryState) -> bytes:
    """A 64 KiB ROM that from the reset vector does no more than to load what `entry` says, and jumps there."""

    def le32(value: int) -> bytes:
        return struct.pack("<I", value)

    real_mode = b"".join((
        b"\xfa",  # cli
        bytes.fromhex("2e660f01168000"),  # lgdt cs:[0x80]
        bytes.fromhex("66b8"), le32(entry.cr4), bytes.fromhex("0f22e0"),
        bytes.fromhex("66b8"), le32(entry.cr3), bytes.fromhex("0f22d8"),
        bytes.fromhex("66b9"), le32(0xC0000080), bytes.fromhex("66b8"), le32(entry.efer & ~0x400),  # LMA follows
        bytes.fromhex("6631d20f30"),  # xor edx, edx; wrmsr
        bytes.fromhex("66b8"), le32(entry.cr0), bytes.fromhex("0f22c0"),
        bytes.fromhex("66ea"), le32(0xFFFF0090), struct.pack("<H", entry.cs),  # far jump to 0x90 below
    ))  # fmt: skip
    long_mode = b"".join((
        b"\xb8", le32(entry.ds), bytes.fromhex("8ed88ec08ed0"),  # ds, es, ss
        b"\xbc", le32(entry.rsp), b"\xbe", le32(entry.rsi), b"\xb8", le32(entry.rip), b"\xff\xe0",  # jmp rax
    ))  # fmt: skip
    rom = bytearray(0x10000)
    rom[0 : len(real_mode)] = real_mode
    rom[0x80:0x86] = struct.pack("<HI", entry.gdt_limit, entry.gdt_base)
    rom[0x90 : 0x90 + len(long_mode)] = long_mode
    rom[0xFFF0:0xFFF3] = bytes.fromhex("e90d00")  # jmp 0
    return bytes(rom)


@pytest.mark.slow
def test_debian_boots_from_the_entry_state(tmp_path: Path) -> None:
    """QEMU, given only RAM and registers as `load` tells them, brings Debian's kernel to our /init and its files.

    It is not QEMU's loader that runs here, and no firmware: only the state that the boot protocol asks for.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    try:
        made, program = LinuxKernel.read(cloud_kernel()), busybox().read_bytes()
    except GuestUnavailableError as exc:
        pytest.skip(f"no guest from Debian here: {exc}")
    script = "cat /etc/motd; ls -l /bin/sh; reboot -f"
    memory = ram(128)
    entry = made.load(
        memory,
        initrd=busybox_initrd(program, script, {"etc/motd": b"IOBUS GUEST UP\n"}),
        command_line="console=ttyS0 acpi=off reboot=k panic=-1 quiet",
        e820=e820(memory),
    )
    (tmp_path / "low").write_bytes(memory.read(0, layout.EBDA))
    (tmp_path / "high").write_bytes(memory.read(MIB, 127 * MIB))
    (tmp_path / "rom").write_bytes(firmware(entry))
    console = subprocess.run(
        [
            qemu, "-accel", "tcg", "-cpu", "qemu64,-apic", "-m", "128", "-nographic", "-no-reboot",
            "-bios", tmp_path / "rom", "-device", f"loader,file={tmp_path}/low,addr=0,force-raw=on",
            "-device", f"loader,file={tmp_path}/high,addr={MIB:#x},force-raw=on",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=120, check=True,
    ).stdout  # fmt: skip
    assert "IOBUS GUEST UP" in console
    assert "/bin/sh -> busybox" in console
