"""What the kernel shares with who runs a vCPU, `struct kvm_run`: where things lie in it, and the accesses of one exit.

Above `abi.py`, which has the structure; below `cpu.py`, whose loop looks here at every exit. By the kernel's
Documentation/virt/kvm/api.rst, section 5.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from iobus.engines.kvm import abi, ioctls

# Places, in units of their size.
WINDOW: Final = abi.offset(abi.Run, "request_interrupt_window")
IMMEDIATE_EXIT: Final = abi.offset(abi.Run, "immediate_exit")
REASON: Final = abi.offset(abi.Run, "exit_reason") // 4
READY: Final = abi.offset(abi.Run, "ready_for_interrupt_injection")
IF: Final = abi.offset(abi.Run, "if_flag")
CR8: Final = abi.offset(abi.Run, "cr8") // 8
APIC_BASE: Final = abi.offset(abi.Run, "apic_base") // 8
MMIO_AT: Final = abi.offset(abi.Run, "mmio", "data")
MMIO_DATA: Final = MMIO_AT // 8
MMIO_IS_WRITE: Final = abi.offset(abi.Run, "mmio", "is_write")
IO_DIRECTION: Final = abi.offset(abi.Run, "io", "direction")
IO_SIZE: Final = abi.offset(abi.Run, "io", "size")
IO_PORT: Final = abi.offset(abi.Run, "io", "port") // 2
IO_COUNT: Final = abi.offset(abi.Run, "io", "count") // 4
IO_AT: Final = abi.offset(abi.Run, "io", "data_offset") // 8
MSR_ERROR: Final = abi.offset(abi.Run, "msr", "error")
MSR_INDEX: Final = abi.offset(abi.Run, "msr", "index") // 4
MSR_DATA: Final = abi.offset(abi.Run, "msr", "data") // 8

MOSTLY: Final = struct.Struct("=I4xQQQQIB").unpack_from
"""The exit's reason, CR8, the APIC base, and of an MMIO exit address, data, length and direction; from `MOSTLY_AT`."""
MOSTLY_AT: Final = 4 * REASON

ONES: Final = (1 << 64) - 1
MASKS: Final = tuple((1 << 8 * size) - 1 if size in (1, 2, 4, 8) else 0 for size in range(9))
"""By the size of an access; 0 where the bus has no such size."""

COMPLETED_BY_RUN: Final = frozenset(
    (ioctls.KVM_EXIT_MMIO, ioctls.KVM_EXIT_IO, ioctls.KVM_EXIT_X86_RDMSR, ioctls.KVM_EXIT_X86_WRMSR)
)
"""Exits in the middle of an instruction, which the next KVM_RUN finishes before it runs on."""


class Access(NamedTuple):
    """One access of an exit that made several."""

    is_port: bool
    address: int
    size: int
    is_write: bool
    at: int
    """Where its data is, in bytes from the page's start."""


class RunPage:
    """One vCPU's. `size` in bytes, as KVM_GET_VCPU_MMAP_SIZE says: what it shares more lies behind."""

    def __init__(self, fd: int, size: int) -> None:
        self.memory: Final = mmap.mmap(fd, size)
        self.view: Final = memoryview(self.memory)
        self.u8: Final = self.view.cast("B")
        self.u16: Final = self.view.cast("H")
        self.u32: Final = self.view.cast("I")
        self.u64: Final = self.view.cast("Q")

    def close(self) -> None:
        """Let go of it."""
        for view in (self.u8, self.u16, self.u32, self.u64, self.view):
            view.release()
        self.memory.close()

    def get(self, at: int, size: int) -> int:
        """Return a value of `size` bytes."""
        return int.from_bytes(self.u8[at : at + size], sys.byteorder)

    def put(self, at: int, size: int, value: int) -> None:
        """Set a value of `size` bytes."""
        self.u8[at : at + size] = value.to_bytes(size, sys.byteorder)

    def within_instruction(self) -> bool:
        """Whether the last exit came in the middle of an instruction."""
        return self.u32[REASON] in COMPLETED_BY_RUN

    def cut(self, address: int, length: int) -> Iterator[Access]:
        """Make an MMIO exit of a size that the bus has not into elements of the bus's sizes, largest first."""
        is_write, part = bool(self.u8[MMIO_IS_WRITE]), 0
        while part < length:
            unit = min(8, 1 << (length - part).bit_length() - 1)
            yield Access(False, address + part, unit, is_write, MMIO_AT + part)
            part += unit

    def unroll(self) -> Iterator[Access]:
        """Give the elements of a string instruction's exit."""
        size, at, port = self.u8[IO_SIZE], self.u64[IO_AT], self.u16[IO_PORT]
        is_write = self.u8[IO_DIRECTION] == ioctls.KVM_EXIT_IO_OUT
        for index in range(self.u32[IO_COUNT]):
            yield Access(True, port, size, is_write, at + index * size)

    def answer_with_ones(self) -> None:
        """Have the reads of the last exit, if it has any, give all ones."""
        reason = self.u32[REASON]
        if reason == ioctls.KVM_EXIT_MMIO:
            self.u64[MMIO_DATA] = ONES
        elif reason == ioctls.KVM_EXIT_IO and self.u8[IO_DIRECTION] != ioctls.KVM_EXIT_IO_OUT:
            at, length = self.u64[IO_AT], self.u8[IO_SIZE] * self.u32[IO_COUNT]
            self.u8[at : at + length] = b"\xff" * length
