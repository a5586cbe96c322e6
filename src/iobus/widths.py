"""Between the access sizes that guests use and those that a device's methods handle: split, merge, endianness.

The ground floor below `bus.py`, which has each region's calls made here; it imports nothing of iobus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import NotImplementedType
from typing import Any, Final, Literal

SIZES: Final = (1, 2, 4, 8)
"""The access sizes in bytes. Larger accesses reach the bus as elements of these sizes."""

Value = int | NotImplementedType
"""What a read gives: a value, or Python's own word for "ask the next one"."""
Read = Callable[[int, int], Value]
Write = Callable[[int, int, int], object]
Endian = Literal["little", "big"]


def adapter(device: Any, sizes: tuple[int, ...], implements: tuple[int, ...], endian: Endian) -> tuple[Read, Write]:
    """Return `device`'s own methods, or a pair around them that splits, merges and swaps.

    The pair takes accesses of `sizes`, little-endian, and makes accesses of sizes in `implements`. It raises
    `ValueError` where the device's answer is no value of the size it was asked for.
    """
    if endian == "little" and set(sizes) <= set(implements):
        return device.read, device.write

    def units(offset: int, size: int) -> Iterator[tuple[int, int]]:
        """The implemented accesses that cover `[offset, offset + size)`."""
        if size in implements:
            yield offset, size
            return
        fitting = [unit for unit in implements if unit <= size and not offset % unit]
        unit = max(fitting) if fitting else min(implements)
        for start in range(offset - offset % unit, offset + size, unit):
            yield start, unit

    def read_unit(offset: int, unit: int) -> bytes:
        value = device.read(offset, unit)
        if value is NotImplemented:
            raise _DeclinedError
        if not isinstance(value, int) or value >> (8 * unit):
            raise ValueError(f"read({offset:#x}, {unit}) returned {value!r}, no value of {unit} bytes")
        return value.to_bytes(unit, endian)

    def write_unit(offset: int, data: bytes) -> None:
        if device.write(offset, len(data), int.from_bytes(data, endian)) is NotImplemented:
            raise _DeclinedError

    def read(offset: int, size: int) -> Value:
        start, data = -1, b""
        try:
            for at, unit in units(offset, size):
                start = at if start < 0 else start
                data += read_unit(at, unit)
        except _DeclinedError:
            return NotImplemented  # type: ignore[no-any-return]
        return int.from_bytes(data[offset - start : offset - start + size], "little")

    def write(offset: int, size: int, value: int) -> object:
        data, end = value.to_bytes(size, "little"), offset + size
        try:
            for at, unit in units(offset, size):
                low, high = max(at, offset), min(at + unit, end)
                piece = data[low - offset : high - offset]
                if len(piece) < unit:  # narrower than the device writes: keep the unit's other bytes
                    whole = bytearray(read_unit(at, unit))
                    whole[low - at : high - at] = piece
                    piece = bytes(whole)
                write_unit(at, piece)
        except _DeclinedError:
            return NotImplemented
        return None

    return read, write


class _DeclinedError(Exception):
    """Inside an adapter: the device declined one of the pieces, so the access is declined."""
