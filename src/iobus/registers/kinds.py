"""Access kinds: what a guest's read and write do to the bits of a field, named as datasheets name them.

The ground floor of `registers/`; imports nothing. A kind is a pair: what a read gives and leaves behind
(`OnRead`) and what a write does (`OnWrite`). `OnRead` and `OnWrite` are the two halves that SystemRDL
(sw, onread, onwrite), CMSIS-SVD and IP-XACT (access, readAction, modifiedWriteValue) describe, so every
kind has a place in each of them. `docs/registers.md` has the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class OnRead(Enum):
    """What a guest's read of a bit gives, and what it leaves behind."""

    VALUE = "gives the value"
    ZERO = "gives 0"
    ONE = "gives 1"
    CLEARS = "gives the value, then clears it"
    SETS = "gives the value, then sets all its bits"
    EFFECT = "gives the value; the device does the rest"


class OnWrite(Enum):
    """What a guest's write does to a bit."""

    IGNORED = "is ignored"
    STORES = "stores"
    ONCE = "stores the first time after reset, then is ignored"
    ONE_CLEARS = "of 1 clears"
    ONE_SETS = "of 1 sets"
    ONE_TOGGLES = "of 1 toggles"
    ZERO_CLEARS = "of 0 clears"
    ZERO_SETS = "of 0 sets"
    ZERO_TOGGLES = "of 0 toggles"
    CLEARS = "of anything clears"
    SETS = "of anything sets"
    EFFECT = "is the device's to act on"


@dataclass(frozen=True, slots=True)
class Access:
    """An access kind. Two kinds are equal when they do the same, whatever they are called."""

    name: str = field(compare=False)
    """As datasheets write it."""
    on_read: OnRead
    on_write: OnWrite

    def __post_init__(self) -> None:
        if self.on_read is OnRead.ONE and self.on_write is not OnWrite.IGNORED:
            raise ValueError(f"access kind {self.name}: bits that read as 1 whatever they hold take no writes")

    def __repr__(self) -> str:
        return self.name

    @property
    def readable(self) -> bool:
        """Whether a read shows the value that is kept."""
        return self.on_read not in (OnRead.ZERO, OnRead.ONE)

    @property
    def writable(self) -> bool:
        """Whether a write has an effect."""
        return self.on_write is not OnWrite.IGNORED

    @property
    def keeps(self) -> bool:
        """Whether the bits can hold anything: not when they are reserved, nor when a write is only an event."""
        if self.on_read is OnRead.ONE:
            return False
        return self.readable or self.on_write not in (OnWrite.IGNORED, OnWrite.CLEARS)


def kind(on_read: OnRead, on_write: OnWrite) -> Access:
    """Return the kind of this pair: the named one where there is one, else one called after its halves."""
    return _BY_EFFECT.get((on_read, on_write)) or Access(f"{on_read.name}_{on_write.name}", on_read, on_write)


R: Final = Access("R", OnRead.VALUE, OnWrite.IGNORED)
"""Read only: writes are ignored; the device sets it."""
RW: Final = Access("RW", OnRead.VALUE, OnWrite.STORES)
"""Reads give what was written."""
RW1: Final = Access("RW1", OnRead.VALUE, OnWrite.ONCE)
"""Each bit takes the first write after reset and ignores later ones."""
RW1C: Final = Access("RW1C", OnRead.VALUE, OnWrite.ONE_CLEARS)
"""Writing 1 clears the bit, writing 0 leaves it."""
RW1S: Final = Access("RW1S", OnRead.VALUE, OnWrite.ONE_SETS)
"""Writing 1 sets the bit, writing 0 leaves it."""
RW1T: Final = Access("RW1T", OnRead.VALUE, OnWrite.ONE_TOGGLES)
"""Writing 1 toggles the bit, writing 0 leaves it."""
RW0C: Final = Access("RW0C", OnRead.VALUE, OnWrite.ZERO_CLEARS)
"""Writing 0 clears the bit, writing 1 leaves it."""
RW0S: Final = Access("RW0S", OnRead.VALUE, OnWrite.ZERO_SETS)
"""Writing 0 sets the bit, writing 1 leaves it."""
RW0T: Final = Access("RW0T", OnRead.VALUE, OnWrite.ZERO_TOGGLES)
"""Writing 0 toggles the bit, writing 1 leaves it."""
RWC: Final = Access("RWC", OnRead.VALUE, OnWrite.CLEARS)
"""Any write clears the bits it covers."""
RWS: Final = Access("RWS", OnRead.VALUE, OnWrite.SETS)
"""Any write sets the bits it covers."""
RC: Final = Access("RC", OnRead.CLEARS, OnWrite.IGNORED)
"""A read gives the value and clears it; writes are ignored."""
RS: Final = Access("RS", OnRead.SETS, OnWrite.IGNORED)
"""A read gives the value and sets all its bits; writes are ignored."""
RCW: Final = Access("RCW", OnRead.CLEARS, OnWrite.STORES)
"""As RW, and a read clears it."""
RME: Final = Access("RME", OnRead.EFFECT, OnWrite.IGNORED)
"""Read only, and reading has a side effect that an `on_read` hook makes (a FIFO's exit)."""
RMEW: Final = Access("RMEW", OnRead.EFFECT, OnWrite.STORES)
"""As RW, and reading has a side effect that an `on_read` hook makes."""
RWME: Final = Access("RWME", OnRead.VALUE, OnWrite.EFFECT)
"""Reads give the value; what a write does is for an `on_write` hook to say."""
W: Final = Access("W", OnRead.ZERO, OnWrite.CLEARS)
"""A write is an event, seen by `on_write` hooks: nothing is kept, reads give 0."""
WO: Final = Access("WO", OnRead.ZERO, OnWrite.STORES)
"""Write only: the device sees what was written, a guest reads 0."""
W1: Final = Access("W1", OnRead.ZERO, OnWrite.ONCE)
"""Write only, and only the first time after reset."""
W1C: Final = Access("W1C", OnRead.ZERO, OnWrite.ONE_CLEARS)
"""As RW1C, but a guest reads 0."""
W1S: Final = Access("W1S", OnRead.ZERO, OnWrite.ONE_SETS)
"""As RW1S, but a guest reads 0."""
W1T: Final = Access("W1T", OnRead.ZERO, OnWrite.ONE_TOGGLES)
"""As RW1T, but a guest reads 0."""
RES0: Final = Access("RES0", OnRead.ZERO, OnWrite.IGNORED)
"""Reserved: reads give 0, writes are ignored."""
RES1: Final = Access("RES1", OnRead.ONE, OnWrite.IGNORED)
"""Reserved: reads give 1, writes are ignored."""

KINDS: Final = (
    R, RW, RW1, RW1C, RW1S, RW1T, RW0C, RW0S, RW0T, RWC, RWS, RC, RS, RCW, RME, RMEW, RWME,
    W, WO, W1, W1C, W1S, W1T, RES0, RES1,
)  # fmt: skip
"""The kinds that have a name. `kind` makes the others."""

_BY_EFFECT: Final = {(access.on_read, access.on_write): access for access in KINDS}
