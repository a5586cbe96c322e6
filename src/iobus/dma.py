"""A device's bus-mastering access: `Dma`, to RAM and to the machine's other devices.

Stands between `bus.py` and `memory.py` below and `machine.py`, which makes it (`Machine.dma`). A device whose own
DMA is under way is not entered a second time by it: such an access is refused before the device is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final

from iobus.bus import Bus, IobusError, Region
from iobus.claims import checked, device_error
from iobus.errors import RAISED
from iobus.lock import Lock
from iobus.memory import Memory

LIMIT: Final = 1 << 26
"""The most bytes that one call transfers. A guest that programs a device with more than that asks for nonsense."""


class ReentrancyError(IobusError):
    """DMA that would reach a device whose own DMA is under way: refused before that device is asked."""


class Masters(threading.local):
    """The devices whose DMA is under way, of the calling thread: one that waits in between is not another's."""

    def __init__(self) -> None:
        self.chain: list[object] = []


class Dma:
    """A device's access to guest physical addresses. Made by `Machine.dma`.

    RAM is accessed directly; elsewhere the machine's devices are asked, in aligned elements of up to 8 bytes, with
    the machine lock held. What is neither reads as all ones and drops writes, as for a CPU. A call transfers up to
    `LIMIT` bytes, so a device checks the lengths that a guest gives it.
    """

    def __init__(self, device: object, memory: Memory, bus: Bus, lock: Lock, masters: Masters) -> None:
        self._device: Final = whole(device)
        self._memory: Final = memory
        self._bus: Final = bus
        self._lock: Final = lock
        self._masters: Final = masters

    def read(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes from `gpa`. Raises `ReentrancyError`, `DeviceError`, and `ValueError` for the range."""
        data = bytearray()
        for at, count, is_ram in self._pieces(gpa, length):
            if is_ram:
                data += self._memory.read(at, count)
            else:
                value = self._ask(at, count, None)
                data += ((1 << 8 * count) - 1 if value is NotImplemented else value).to_bytes(count, "little")
        return bytes(data)

    def write(self, gpa: int, data: bytes) -> None:
        """Write `data` at `gpa`. Raises as `read`; what comes before a refused element is written."""
        done = 0
        for at, count, is_ram in self._pieces(gpa, len(data), write=True):
            piece = data[done : done + count]
            done += count
            if is_ram:
                self._memory.write(at, piece)
            else:
                self._ask(at, count, int.from_bytes(piece, "little"))

    def read_list(self, pieces: Iterable[tuple[int, int]]) -> bytes:
        """Gather: return the bytes of all `pieces`, each a `(gpa, length)`, in their order. Raises as `read`."""
        data = bytearray()
        for gpa, length in pieces:
            _check(gpa, length, len(data))
            data += self.read(gpa, length)
        return bytes(data)

    def write_list(self, pieces: Iterable[tuple[int, int]], data: bytes) -> int:
        """Scatter: write `data` over `pieces`, each a `(gpa, length)`, in their order; return how much they took.

        That is less than `len(data)` where the pieces are shorter; a piece that `data` does not reach stays as it
        is. Raises as `read`.
        """
        done = 0
        for gpa, length in pieces:
            _check(gpa, length, 0)
            if done == len(data):
                break
            piece = data[done : done + length]
            self.write(gpa, piece)
            done += len(piece)
        return done

    def _pieces(self, gpa: int, length: int, *, write: bool = False) -> Iterator[tuple[int, int, bool]]:
        """Cut at RAM's borders; what is not RAM into aligned elements of at most 8 bytes."""
        _check(gpa, length, 0)
        at, end = gpa, gpa + length
        while at < end:
            slot = self._memory.find(at, write=write)
            if slot is not None:
                count = min(end, slot.base + slot.size) - at
            else:
                count = min(8, at & -at or 8, 1 << (end - at).bit_length() - 1)
            yield at, count, slot is not None
            at += count

    def _ask(self, address: int, size: int, value: int | None) -> Any:
        """One element, `value` written or (None) read, of the devices; `NotImplemented` where none claims it."""
        bus, chain = self._bus, self._masters.chain

        def before(region: Region) -> None:
            device = whole(region.device)
            if any(device is master for master in chain):
                raise ReentrancyError(
                    f"{type(region.device).__name__} at region {region.name!r}: DMA to {address:#x} "
                    "reaches the device that started it"
                )

        with self._lock:
            chain.append(self._device)
            try:
                hit = bus.remembered(address, size, value is not None)
                if hit is None:
                    return bus.search(address, size, value, None, before)
                call, offset, claim = hit
                if claim is None:
                    return NotImplemented
                before(claim.region)
                try:
                    result = call(offset, size) if value is None else call(offset, size, value)
                except RAISED as exc:
                    raise device_error(claim, address, size, value, exc) from exc
                if result is NotImplemented:
                    return bus.search(address, size, value, claim, before)
                return checked(claim, address, size, result) if value is None else None
            finally:
                chain.pop()


def whole(device: object) -> object:
    """Return the device that `device` is a part of, by its `part_of`; by default itself."""
    while (owner := getattr(device, "part_of", None)) is not None:
        device = owner
    return device


def _check(gpa: int, length: int, before: int) -> None:
    if gpa < 0 or length < 0:
        raise ValueError(f"DMA of {length} bytes at {gpa:#x}: neither may be negative")
    if before + length > LIMIT:
        raise ValueError(
            f"DMA of {before + length} bytes, up to {gpa:#x}: a call transfers at most {LIMIT}; "
            "a device checks the lengths that a guest gives it"
        )
