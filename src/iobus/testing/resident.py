"""A bench's accesses made by a CPU: `Resident`, a few instructions in the bench's RAM, run once for each access.

Beside `bench.py`, which takes it in place of `Direct` where its machine has an engine. So one test of a device runs
without a CPU, on Unicorn and on KVM. The CPU is in long mode, with interrupts off; a page of its address space is
mapped to where the access goes, and the TLB flushed, before each.
"""

from __future__ import annotations

import contextlib
from typing import Final

from iobus.bus import DeviceError
from iobus.cpu_registers import Registers, Segment
from iobus.exits import EngineError, HltExit
from iobus.memory import PAGE_SIZE
from iobus.paging import PHYSICAL_BITS
from iobus.vcpu import VCPU

SIZE: Final = 64 << 10
"""Bytes of RAM that it takes, the last of the bench's."""

_PML4, _PDPT, _CODE_DIRECTORY, _DIRECTORY, _TABLE, _CODE, _GDT = (PAGE_SIZE * page for page in range(7))
_WINDOW: Final = 1 << 30  # the guest virtual address of the page that is mapped to what is accessed
_PRESENT, _WRITABLE, _LARGE = 1, 2, 0x80
_SLOT: Final = 16  # bytes from one piece of code to the next

_LOADS: Final = {1: "8a07", 2: "668b07", 4: "8b07", 8: "488b07"}  # mov al, [rdi] and so on
_STORES: Final = {1: "8807", 2: "668907", 4: "8907", 8: "488907"}
_INS: Final = {1: "ec", 2: "66ed", 4: "ed"}  # in al, dx
_OUTS: Final = {1: "ee", 2: "66ef", 4: "ef"}
_PIECES: Final = [("load", _LOADS), ("store", _STORES), ("in", _INS), ("out", _OUTS)]


class Resident:
    """Makes accesses with the CPU of `vcpu`. Its machine has RAM at [`at`, `at` + `SIZE`), below 2 MiB."""

    def __init__(self, vcpu: VCPU, at: int) -> None:
        self._vcpu: Final = vcpu
        self._machine: Final = vcpu.machine
        self._memory: Final = vcpu.machine.memory
        self._at: Final = at
        self._code: Final[dict[tuple[str, int], int]] = {}
        code = bytearray()
        for name, pieces in _PIECES:
            for size, instruction in pieces.items():
                self._code[name, size] = at + _CODE + len(code)
                # mov cr3, rsi; the instruction; hlt
                code += bytes.fromhex(f"0f22de {instruction} f4").ljust(_SLOT, b"\xf4")
        self._memory.write(at + _CODE, bytes(code))
        entries = (
            (_PML4, _PDPT), (_PDPT, _CODE_DIRECTORY), (_PDPT + 8, _DIRECTORY), (_DIRECTORY, _TABLE),
        )  # fmt: skip
        for entry, target in entries:
            self._memory.store(at + entry, 8, at + target | _PRESENT | _WRITABLE)
        self._memory.store(at + _CODE_DIRECTORY, 8, _PRESENT | _WRITABLE | _LARGE)
        # A code and a data segment, for who reads the table: the CPU's own are loaded.
        self._memory.write(at + _GDT, b"".join(entry.to_bytes(8, "little") for entry in (0, _CODE64, _DATA)))

    def mmio(self, address: int, size: int, value: int | None) -> int:
        """As `Accessor.mmio`. Raises `ValueError` for an address that the CPU has not."""
        if address >> PHYSICAL_BITS:
            raise ValueError(f"address {address:#x}: the CPU has {PHYSICAL_BITS} bits of physical address")
        page = address & -PAGE_SIZE
        self._memory.store(self._at + _TABLE, 8, page | _PRESENT | _WRITABLE)
        return self._run("load" if value is None else "store", size, value or 0, rdi=_WINDOW | address - page)

    def pio(self, port: int, size: int, value: int | None) -> int:
        """As `Accessor.pio`."""
        return self._run("in" if value is None else "out", size, value or 0, rdx=port)

    def _run(self, what: str, size: int, value: int, *, rdi: int = 0, rdx: int = 0) -> int:
        at, data = self._at, Segment(0x10, 0, 0xFFFFFFFF, 0xC093)
        self._vcpu.registers = Registers(
            rip=self._code[what, size], rax=value, rdi=rdi, rdx=rdx, rsi=at + _PML4,
            cs=Segment(0x08, 0, 0xFFFFFFFF, 0xA09B), ds=data, es=data, ss=data, fs=data, gs=data,
            tr=Segment(0x18, 0, 0x67, 0x8B), gdt_base=at + _GDT, gdt_limit=0x17,
            cr0=0x80010033, cr3=at + _PML4, cr4=0x620, efer=0xD00,
        )  # fmt: skip
        try:
            exit = self._machine.run()
        except Exception:
            for _ in range(size):  # the access may have parts, each of which a device fails
                with contextlib.suppress(DeviceError):
                    self._machine.run()
                    break
            raise
        if exit != HltExit():
            raise EngineError(f"the CPU that made a {size}-byte access ended in {exit}")
        return self._vcpu.registers.rax & (1 << 8 * size) - 1


_CODE64: Final = 0x00AF9B000000FFFF
_DATA: Final = 0x00CF93000000FFFF
