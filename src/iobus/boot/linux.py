"""How Linux gets in: a bzImage by the 64-bit or the 32-bit boot protocol. `LinuxKernel.read`, then `load`.

Stands above `memory` and `pc.layout`, knows no engine: `load` writes the guest's RAM and returns an
`EntryState`, the registers a vCPU must have at the kernel's first instruction. Field names and
offsets are those of the kernel's Documentation/arch/x86/boot.rst ("The Linux/x86 Boot Protocol")
and zero-page.rst. A kernel with a 64-bit entry is entered there, another by the 32-bit protocol.

What is written, lowest address first::

    0x10000   boot_params (the "zero page")
    0x11000   GDT
    0x12000   page tables: the first 4 GiB, virtual = physical, in 2 MiB pages (64-bit protocol)
    0x20000   end of the stack; from here the command line
    pref      the kernel (usually 16 MiB), which needs init_size bytes from there
    top       the initrd, as high as initrd_addr_max and RAM allow
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from iobus.boot.handover import E820_RAM, BootError, E820Entry, read_file
from iobus.cpu_registers import CR0_PE, Registers, Segment
from iobus.memory import PAGE_SIZE, Memory
from iobus.pc import layout

BOOT_PARAMS: Final = 0x10000
GDT: Final = 0x11000
PAGE_TABLES: Final = 0x12000
STACK_END: Final = 0x20000
COMMAND_LINE: Final = 0x20000

BOOT_CS: Final = 0x10
BOOT_DS: Final = 0x18

_MEBIBYTE: Final = 1 << 20
_E820_MAX: Final = 128
"""The entries that boot_params has room for."""

# Offsets in boot_params; from 0x1F1 the same as in the file ("setup header").
_SCREEN_INFO: Final = 0x000
_ACPI_RSDP_ADDR: Final = 0x070
_E820_ENTRIES: Final = 0x1E8
_SETUP_HEADER: Final = 0x1F1
_VID_MODE: Final = 0x1FA
_BOOT_FLAG: Final = 0x1FE
_HEADER: Final = 0x202
_TYPE_OF_LOADER: Final = 0x210
_CODE32_START: Final = 0x214
_RAMDISK_IMAGE: Final = 0x218
_CMD_LINE_PTR: Final = 0x228
_SETUP_HEADER_END: Final = 0x290
_E820_TABLE: Final = 0x2D0

# struct screen_info: the cursor, then of the VGA as `Pc.power_on` leaves it the page and mode, the columns, INT 10h
# function 12h's answer (BL = 3: an EGA or VGA with 256 KiB), the rows, "is a VGA" and the scan lines of a character.
_TEXT_MODE_3: Final = struct.pack("<BBHHBBBBHHBBH", 0, 0, 0, 0, 3, 80, 0, 0, 3, 0, 25, 1, 16)

_LOADED_HIGH: Final = 1 << 0  # of loadflags
_XLF_KERNEL_64: Final = 1 << 0  # of xloadflags


@dataclass(frozen=True, slots=True)
class EntryState:
    """A vCPU at the kernel's entry. What is not here is zero, and interrupts are off."""

    rip: int
    rsi: int
    """The address of boot_params."""
    rsp: int
    cr3: int
    gdt_base: int
    gdt_limit: int
    cs: int = BOOT_CS
    """A code segment, base 0, execute/read, of 64 or 32 bits as `efer` says; its descriptor is in the GDT."""
    ds: int = BOOT_DS
    """DS, ES and SS: a data segment, base 0, limit 4 GiB, read/write."""
    rflags: int = 0x2
    cr0: int = 0x80000011
    """PG, ET, PE."""
    cr4: int = 0x20
    """PAE."""
    efer: int = 0x500
    """LMA, LME; 0 at a 32-bit entry."""

    def registers(self) -> Registers:
        """Return the registers a vCPU starts with."""
        data = Segment(self.ds, 0, 0xFFFFFFFF, 0xC093)
        return Registers(
            rip=self.rip, rsi=self.rsi, rsp=self.rsp, rflags=self.rflags,
            cs=Segment(self.cs, 0, 0xFFFFFFFF, 0xA09B if self.efer else 0xC09B), ds=data, es=data, ss=data,
            gdt_base=self.gdt_base, gdt_limit=self.gdt_limit,
            cr0=self.cr0, cr3=self.cr3, cr4=self.cr4, efer=self.efer,
        )  # fmt: skip


def is_bzimage(data: bytes) -> bool:
    """Whether a file has the boot flag and signature of a Linux kernel."""
    return data[_BOOT_FLAG : _BOOT_FLAG + 2] == b"\x55\xaa" and data[_HEADER : _HEADER + 4] == b"HdrS"


def read_initrd(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an initrd file. Raises `BootError`."""
    data = read_file(path, "initrd")
    if not data:
        raise BootError(f"initrd {path} is empty; give a cpio archive, compressed or not")
    return data


@dataclass(frozen=True, slots=True)
class LinuxKernel:
    """A bzImage, read and found bootable. Fields named as in boot.rst are the setup header's."""

    path: Path
    setup_header: bytes
    """The header as in the file, from offset 0x1F1."""
    image: bytes
    """The protected-mode code."""
    version: tuple[int, int]
    """Of the boot protocol."""
    relocatable: bool
    kernel_alignment: int
    pref_address: int
    init_size: int
    cmdline_size: int
    initrd_addr_max: int
    is_64bit: bool
    """Whether there is a 64-bit entry (XLF_KERNEL_64)."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read and check a kernel file. Raises `BootError`."""
        return cls.parse(read_file(path, "kernel"), Path(path))

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Self:
        """Check a kernel file's bytes. Raises `BootError`."""
        if len(data) < _HEADER + 4:
            raise BootError(f"kernel {path} is only {len(data)} bytes long; give a Linux bzImage (/boot/vmlinuz-...)")
        (boot_flag,) = struct.unpack_from("<H", data, _BOOT_FLAG)
        magic = data[_HEADER : _HEADER + 4]
        if not is_bzimage(data):
            kind = ", it is an ELF file such as vmlinux" if data.startswith(b"\x7fELF") else ""
            raise BootError(
                f"kernel {path} is no Linux bzImage{kind}: it has boot flag {boot_flag:#06x} and signature {magic!r}, "
                "which should be 0xaa55 and b'HdrS'"
            )
        # Shorter files end here too: what follows reads up to 0x264, and no setup is below two sectors.
        if len(data) < 1024:
            raise BootError(f"kernel {path} is truncated: it ends at {len(data)} bytes, inside its setup header")
        version = (data[0x207], data[0x206])
        if version < (2, 10):
            raise BootError(
                f"kernel {path} speaks boot protocol {version[0]}.{version[1]:02}; "
                "2.10 (Linux 2.6.31) or newer is needed, which says what room the kernel wants"
            )
        loadflags, (xloadflags,) = data[0x211], struct.unpack_from("<H", data, 0x236)
        if not loadflags & _LOADED_HIGH:
            raise BootError(
                f"kernel {path} is a zImage (loadflags {loadflags:#x}); give a bzImage, with LOADED_HIGH set"
            )
        image_at = ((data[0x1F1] or 4) + 1) * 512
        (paragraphs,) = struct.unpack_from("<I", data, 0x1F4)
        want = image_at + paragraphs * 16
        if len(data) <= want - 16:
            raise BootError(f"kernel {path} is truncated: it is {len(data)} bytes long and its header says {want}")
        initrd_addr_max, kernel_alignment = struct.unpack_from("<II", data, 0x22C)
        (cmdline_size,) = struct.unpack_from("<I", data, 0x238)
        pref_address, init_size = struct.unpack_from("<QI", data, 0x258)
        header_end = min(_HEADER + data[0x201], _SETUP_HEADER_END)
        return cls(
            path=path,
            setup_header=data[_SETUP_HEADER:header_end],
            image=data[image_at:want],
            version=version,
            relocatable=bool(data[0x234]),
            kernel_alignment=kernel_alignment or PAGE_SIZE,
            pref_address=max(pref_address, _MEBIBYTE),  # LOADED_HIGH: never lower
            init_size=init_size,
            cmdline_size=cmdline_size,
            initrd_addr_max=initrd_addr_max,
            is_64bit=version >= (2, 12) and bool(xloadflags & _XLF_KERNEL_64),
        )

    def load(
        self,
        memory: Memory,
        *,
        initrd: bytes = b"",
        command_line: str = "",
        acpi_rsdp: int = 0,
        e820: Sequence[E820Entry],
    ) -> EntryState:
        """Write kernel, initrd, command line and all that the protocol wants; return how to enter.

        `e820` is the guest's memory map, and says where RAM may be used. `acpi_rsdp` is the guest
        physical address of ACPI's root pointer, 0 to let the guest search. Raises `BootError`
        before anything is written.
        """
        if memory.find(0, layout.EBDA) is None:
            raise BootError(f"kernel {self.path} needs RAM from 0 to {layout.EBDA:#x} for its boot parameters")
        if len(e820) > _E820_MAX:
            raise BootError(f"kernel {self.path} cannot take {len(e820)} e820 entries; give at most {_E820_MAX}")
        text = command_line.encode(errors="surrogateescape")
        room = min(self.cmdline_size, layout.EBDA - COMMAND_LINE - 1)
        if len(text) > room:
            raise BootError(
                f"the command line for kernel {self.path} is {len(text)} bytes long; this kernel takes at most {room}"
            )
        if b"\0" in text:
            raise BootError(f"the command line for kernel {self.path} has a NUL character at {text.index(0)}; drop it")
        usable = [(entry.base, entry.base + entry.size) for entry in e820 if entry.kind == E820_RAM]
        at = self._place_kernel(usable, len(initrd))
        initrd_at = self._place_initrd(usable, at, len(initrd)) if initrd else 0

        params = bytearray(PAGE_SIZE)
        params[_SCREEN_INFO : len(_TEXT_MODE_3)] = _TEXT_MODE_3
        params[_SETUP_HEADER : _SETUP_HEADER + len(self.setup_header)] = self.setup_header
        struct.pack_into("<Q", params, _ACPI_RSDP_ADDR, acpi_rsdp)
        struct.pack_into("<H", params, _VID_MODE, 0xFFFF)  # "normal"
        params[_TYPE_OF_LOADER] = 0xFF  # a loader without an assigned number
        struct.pack_into("<I", params, _CODE32_START, at & 0xFFFFFFFF)
        struct.pack_into("<II", params, _RAMDISK_IMAGE, initrd_at, len(initrd))
        struct.pack_into("<I", params, _CMD_LINE_PTR, COMMAND_LINE)
        params[_E820_ENTRIES] = len(e820)
        for index, entry in enumerate(e820):
            struct.pack_into("<QQI", params, _E820_TABLE + 20 * index, *entry)
        memory.write(BOOT_PARAMS, params)
        memory.write(COMMAND_LINE, text + b"\0")
        memory.write(at, self.image)
        if initrd:
            memory.write(initrd_at, initrd)

        code = 0x00AF9B000000FFFF if self.is_64bit else 0x00CF9B000000FFFF
        gdt = struct.pack("<QQQQ", 0, 0, code, 0x00CF93000000FFFF)
        memory.write(GDT, gdt)
        if not self.is_64bit:  # paging off; EBP, EDI and EBX must be 0
            return EntryState(
                rip=at, rsi=BOOT_PARAMS, rsp=STACK_END, cr3=0, gdt_base=GDT, gdt_limit=len(gdt) - 1,
                cr0=CR0_PE | 0x10, cr4=0, efer=0,
            )  # fmt: skip
        memory.write(PAGE_TABLES, _identity_map(PAGE_TABLES))
        return EntryState(
            rip=at + 0x200, rsi=BOOT_PARAMS, rsp=STACK_END, cr3=PAGE_TABLES, gdt_base=GDT, gdt_limit=len(gdt) - 1
        )

    def _footprint(self) -> int:
        return max(self.init_size, len(self.image))

    def _place_kernel(self, usable: Sequence[tuple[int, int]], initrd_size: int) -> int:
        """Return the lowest good address from pref_address up.

        A kernel that is loaded lower moves itself up to pref_address all the same, so what lies
        below is no help when memory is short. The initrd is in RAM twice, packed and unpacked, before it runs.
        """
        need = self._footprint()
        for start, end in sorted(usable):
            at = max(start, self.pref_address)
            at += -at % self.kernel_alignment if at != self.pref_address else 0
            if at + need <= min(end, 1 << 32) and (self.relocatable or at == self.pref_address):
                return at
        total = sum(end - start for start, end in usable)
        enough = self.pref_address + need + 2 * initrd_size
        raise BootError(
            f"kernel {self.path} needs {need:#x} bytes of RAM from {self.pref_address:#x} and there is no such room in "
            f"{-(-total // _MEBIBYTE)} MiB; give the guest {-(-enough // _MEBIBYTE)} MiB or more"
        )

    def _place_initrd(self, usable: Sequence[tuple[int, int]], kernel_at: int, size: int) -> int:
        """Return the highest page where the initrd fits beside the kernel."""
        kernel_end = kernel_at + self._footprint()
        best, largest = 0, 0
        for start, end in _without(usable, kernel_at, kernel_end):
            start = -(-max(start, _MEBIBYTE) // PAGE_SIZE) * PAGE_SIZE
            end = min(end, self.initrd_addr_max + 1, layout.RAM_BELOW_4G)
            largest = max(largest, end - start)
            best = max(best, (end - size) // PAGE_SIZE * PAGE_SIZE if end - start >= size else 0)
        if not best:
            raise BootError(
                f"the initrd for kernel {self.path} is {size} bytes long and the largest room beside the kernel, up to "
                f"{self.initrd_addr_max:#x}, is {largest} bytes; give a smaller initrd or more memory"
            )
        return best


def _without(ranges: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield `ranges` less `[start, end)`."""
    for low, high in ranges:
        if low < min(high, start):
            yield low, min(high, start)
        if max(low, end) < high:
            yield max(low, end), high


def _identity_map(at: int) -> bytes:
    """Return page tables to be put at `at`: a PML4, a page directory pointer table, four directories.

    2 MiB pages, which every 64-bit CPU has (1 GiB pages are an extra). Bits P, R/W and, in the
    directories, PS (SDM vol. 3A, section 4.5).
    """
    pml4 = struct.pack("<512Q", (at + PAGE_SIZE) | 3, *bytes(511))
    pointers = struct.pack("<512Q", *((at + PAGE_SIZE * (2 + index)) | 3 for index in range(4)), *bytes(508))
    directories = struct.pack("<2048Q", *((index << 21) | 0x83 for index in range(2048)))
    return pml4 + pointers + directories
