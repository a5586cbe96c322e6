"""The plain reference: registers as single bits, each with its kind, and accesses bit by bit.

Written from the words of docs/registers.md and slow on purpose: no masks, no tables, nothing shared with
`iobus.registers` but the names of the kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

from iobus.registers import Access, OnRead, OnWrite


@dataclass
class Bit:
    """One bit of a register."""

    access: Access
    value: int
    written: bool = False

    def read(self) -> int:
        """What a guest's read gives, with what it leaves behind."""
        shown = self.value
        how = self.access.on_read
        if how is OnRead.ZERO:
            return 0
        if how is OnRead.ONE:
            return 1
        if how is OnRead.CLEARS:
            self.value = 0
        elif how is OnRead.SETS:
            self.value = 1
        return shown

    def write(self, bit: int) -> None:
        """What a guest's write leaves behind."""
        how = self.access.on_write
        if how is OnWrite.STORES:
            self.value = bit
        elif how is OnWrite.ONCE:
            if not self.written:
                self.value = bit
            self.written = True
        elif how is OnWrite.CLEARS:
            self.value = 0
        elif how is OnWrite.SETS:
            self.value = 1
        elif how is OnWrite.ONE_CLEARS and bit == 1:
            self.value = 0
        elif how is OnWrite.ONE_SETS and bit == 1:
            self.value = 1
        elif how is OnWrite.ONE_TOGGLES and bit == 1:
            self.value = 1 - self.value
        elif how is OnWrite.ZERO_CLEARS and bit == 0:
            self.value = 0
        elif how is OnWrite.ZERO_SETS and bit == 0:
            self.value = 1
        elif how is OnWrite.ZERO_TOGGLES and bit == 0:
            self.value = 1 - self.value


@dataclass
class Reference:
    """A bank as the bits at its byte offsets: `bits[8 * offset + n]` is bit n of the byte at `offset`."""

    bits: dict[int, Bit]
    unmapped: str

    def _declines(self, offset: int, size: int) -> bool:
        covered = range(8 * offset, 8 * (offset + size))
        return self.unmapped == "decline" and any(at not in self.bits for at in covered)

    def read(self, offset: int, size: int) -> int | None:
        """The value, or None for an access that is declined."""
        if self._declines(offset, size):
            return None
        value = 0
        for at in range(8 * size):
            bit = self.bits.get(8 * offset + at)
            shown = (1 if self.unmapped == "ones" else 0) if bit is None else bit.read()
            value += shown << at
        return value

    def write(self, offset: int, size: int, value: int) -> bool:
        """Whether the access was taken."""
        if self._declines(offset, size):
            return False
        for at in range(8 * size):
            bit = self.bits.get(8 * offset + at)
            if bit is not None:
                bit.write(value >> at & 1)
        return True
