"""Devices that the core's tests attach: each does one plain thing and keeps the accesses it saw."""

from __future__ import annotations

from typing import Any

from iobus.bus import Device


class Recorder(Device):
    """Answers with a constant and keeps what it was asked."""

    def __init__(self, answer: Any = 0x42, name: str = "") -> None:
        self.answer = answer
        self.name = name
        self.calls: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> Any:
        self.calls.append((offset, size))
        return self.answer

    def write(self, offset: int, size: int, value: int) -> Any:
        self.calls.append((offset, size, value))
        return None


class Bytes(Device):
    """Registers that keep bytes, in the order of `endian`, and the accesses they came by."""

    def __init__(self, data: bytes = bytes(range(0x10, 0x20)), endian: Any = "little") -> None:
        self.data = bytearray(data)
        self.endian = endian
        self.calls: list[tuple[Any, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("r", offset, size))
        return int.from_bytes(self.data[offset : offset + size], self.endian)

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("w", offset, size, value))
        self.data[offset : offset + size] = value.to_bytes(size, self.endian)


class Decliner(Recorder):
    """Declines reads, or writes, or both, after taking note of them."""

    def __init__(self, *, reads: bool = True, writes: bool = True) -> None:
        super().__init__()
        self.reads, self.writes = reads, writes

    def read(self, offset: int, size: int) -> Any:
        super().read(offset, size)
        return NotImplemented if self.reads else self.answer

    def write(self, offset: int, size: int, value: int) -> Any:
        super().write(offset, size, value)
        return NotImplemented if self.writes else None


class Failing(Device):
    """Raises whatever it is asked."""

    def read(self, offset: int, size: int) -> Any:
        raise ZeroDivisionError("no divisor")

    def write(self, offset: int, size: int, value: int) -> Any:
        raise KeyError("no such register")
