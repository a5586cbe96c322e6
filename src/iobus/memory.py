"""Guest RAM: slots of host memory at guest physical addresses, with bounds-checked access.

Near the ground: imports only `bus.py`'s error root. Engines map the slots into their CPU; software
that acts for the guest (DMA, page walks, boot loaders) reads and writes here. RAM is not on the bus.

A slot may be read-only, always (a ROM) or for a time (RAM behind a chipset's write protection): it is read
as RAM is, and a write to it is an access to the bus, where a device may have a use for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable
from typing import NamedTuple

from iobus.bus import IobusError

PAGE_SIZE = 4096
LARGE_PAGE_SIZE = 2 << 20


class MemoryRangeError(IobusError, ValueError):
    """A guest physical range that is not RAM: it names the range."""


class HostMemoryError(IobusError, MemoryError):
    """The host has no room for RAM: it names the size."""


class Slot(NamedTuple):
    """One contiguous piece of guest RAM."""

    base: int
    """First guest physical address, page-aligned."""
    size: int
    """In bytes, whole pages."""
    buffer: mmap.mmap
    """The host's memory, in which the slot begins at `start`."""
    start: int
    view: memoryview
    """The slot's bytes."""

    @property
    def host(self) -> int:
        """The host's address of the first byte: for an engine that maps it."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.view))

    def give_back(self, offset: int, length: int) -> None:
        """Zero whole pages, which the host has back until they are used again."""
        self.buffer.madvise(mmap.MADV_DONTNEED, self.start + offset, length)


class Memory:
    """The guest's RAM. Thread-safe as far as single reads and writes of bytes are."""

    def __init__(self) -> None:
        self.slots: tuple[Slot, ...] = ()
        self.readonly: frozenset[int] = frozenset()
        """The bases of the slots that are read-only now."""
        self.on_write: Callable[[int, int], None] | None = None
        """Called as `(gpa, length)` after a write made here: an engine drops stale translations."""
        self.on_protect: Callable[[Slot, bool], None] | None = None
        """Called as `(slot, readonly)` when `protect` changed a slot: an engine maps it so."""
        self.large_pages = False
        """Whether RAM added from now on is to be in large pages: an engine says so that maps them as a whole. Others
        would pay for it, since the host zeroes large pages of which the guest uses little."""

    def add(self, base: int, size: int, *, readonly: bool = False) -> Slot:
        """Put `size` bytes of zeroed RAM at `base`; both whole pages. Raises `MemoryRangeError`, `HostMemoryError`."""
        if base % PAGE_SIZE or size % PAGE_SIZE or size <= 0 or base < 0:
            raise MemoryRangeError(f"RAM at {base:#x} of {size:#x} bytes: both must be whole pages of 4096 bytes")
        for slot in self.slots:
            if base < slot.base + slot.size and slot.base < base + size:
                raise MemoryRangeError(
                    f"RAM [{base:#x}, {base + size:#x}) overlaps RAM [{slot.base:#x}, {slot.base + slot.size:#x})"
                )
        # Private: only then does MADV_DONTNEED give pages back and zero them. With as much more as it takes to have the
        # host's address and the guest's at the same place within a large page.
        try:
            buffer = mmap.mmap(-1, size + LARGE_PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as exc:
            raise HostMemoryError(
                f"the host has no room for {size} bytes of RAM at {base:#x} ({exc.strerror}); give the guest less"
            ) from None
        start = (base - ctypes.addressof(ctypes.c_char.from_buffer(buffer))) % LARGE_PAGE_SIZE
        if self.large_pages:
            with contextlib.suppress(OSError):  # a host without them has small ones
                buffer.madvise(mmap.MADV_HUGEPAGE, start, size)
        slot = Slot(base, size, buffer, start, memoryview(buffer)[start : start + size])
        self.slots = tuple(sorted((*self.slots, slot), key=lambda slot: slot.base))
        if readonly:
            self.readonly |= {base}
        return slot

    def protect(self, slot: Slot, readonly: bool) -> None:
        """Make a slot read-only, or RAM again. Called while a vCPU is at rest or in one of its own accesses."""
        if (slot.base in self.readonly) != readonly:
            self.readonly ^= {slot.base}
            if self.on_protect is not None:
                self.on_protect(slot, readonly)

    def find(self, gpa: int, length: int = 1, *, write: bool = False) -> Slot | None:
        """Return the slot that holds all of `[gpa, gpa + length)`, or None; for a `write`, if that can be."""
        for slot in self.slots:
            if slot.base <= gpa and gpa + length <= slot.base + slot.size:
                return None if write and slot.base in self.readonly else slot
        return None

    def read(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes from `gpa`. Raises `MemoryRangeError` where they are not all RAM."""
        return b"".join(bytes(slot.view[start : start + count]) for slot, start, count in self._pieces(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `gpa`: all of it, or nothing and `MemoryRangeError` where it is not all writable RAM."""
        self._write(gpa, data, self._pieces(gpa, len(data), write=True))

    def program(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `gpa` as `write` does, into read-only slots too: as who makes a ROM, not as a guest."""
        self._write(gpa, data, self._pieces(gpa, len(data)))

    def _write(self, gpa: int, data: bytes | bytearray | memoryview, pieces: list[tuple[Slot, int, int]]) -> None:
        at = 0
        for slot, start, count in pieces:
            slot.view[start : start + count] = data[at : at + count]
            at += count
        if self.on_write is not None and at:
            self.on_write(gpa, at)

    def load(self, gpa: int, size: int) -> int:
        """Return the little-endian value of `size` bytes at `gpa`."""
        return int.from_bytes(self.read(gpa, size), "little")

    def store(self, gpa: int, size: int, value: int) -> None:
        """Write a little-endian value of `size` bytes at `gpa`."""
        self.write(gpa, value.to_bytes(size, "little"))

    def zero(self, gpa: int, length: int) -> None:
        """Zero `length` bytes from `gpa`: all, or nothing and `MemoryRangeError`. Whole pages are given back."""
        for slot, start, count in self._pieces(gpa, length, write=True):
            first, last = -(-start // PAGE_SIZE) * PAGE_SIZE, (start + count) // PAGE_SIZE * PAGE_SIZE
            if first < last:
                slot.give_back(first, last - first)
            else:
                first = last = start + count
            slot.view[start:first] = bytes(first - start)
            slot.view[last : start + count] = bytes(start + count - last)
        if self.on_write is not None and length:
            self.on_write(gpa, length)

    def clear(self) -> None:
        """Zero all RAM that is not read-only, as at power-on."""
        for slot in self.slots:
            if slot.base in self.readonly:
                continue
            slot.give_back(0, slot.size)
            if self.on_write is not None:
                self.on_write(slot.base, slot.size)

    def _pieces(self, gpa: int, length: int, *, write: bool = False) -> list[tuple[Slot, int, int]]:
        pieces: list[tuple[Slot, int, int]] = []
        at, end = gpa, gpa + length
        for slot in self.slots:
            if at < end and slot.base <= at < slot.base + slot.size and not (write and slot.base in self.readonly):
                count = min(end, slot.base + slot.size) - at
                pieces.append((slot, at - slot.base, count))
                at += count
        if at != end or length < 0:
            raise MemoryRangeError(f"[{gpa:#x}, {end:#x}) is not all RAM{' that can be written' if write else ''}")
        return pieces
