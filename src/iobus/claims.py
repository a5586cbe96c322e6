"""Which claims lie at an address, found by looking into a handful of slots however many there are.

The ground floor below `bus.py`, whose regions make the claims. Each claim is filed under the smallest power of two
that covers its length, in the one or two slots of that size that it touches; a lookup probes one slot a level in use.
No lookup takes a lock: slots and levels are immutable tuples, replaced whole by the one writer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from iobus.errors import DeviceError
from iobus.widths import Read, Write

if TYPE_CHECKING:
    from iobus.bus import Region


class Claim(NamedTuple):
    """One region's standing at one moment. Immutable: a move makes a new one."""

    region: Region
    base: int
    end: int
    rank: tuple[int, int]
    read: Read
    write: Write
    asked: Callable[[int, int], bool] | None


class Claims:
    """The claims of one bus. Its writers take turns; who looks something up needs not."""

    def __init__(self) -> None:
        self._levels: tuple[tuple[int, dict[int, tuple[Claim, ...]]], ...] = ()
        self.asked: tuple[Claim, ...] = ()
        """Those that an `in_range` callback tells, which have no place to be filed under."""

    def file(self, claim: Claim) -> None:
        """Have `claim` found from now on."""
        if claim.asked is not None:
            self.asked += (claim,)
            return
        shift = (claim.end - claim.base - 1).bit_length()
        slots = dict(self._levels).get(shift)
        if slots is None:
            slots = {}
            self._levels = (*self._levels, (shift, slots))
        for slot in {claim.base >> shift, (claim.end - 1) >> shift}:
            slots[slot] = (*slots.get(slot, ()), claim)

    def unfile(self, claim: Claim) -> None:
        """Have it found no more."""
        if claim.asked is not None:
            self.asked = tuple(other for other in self.asked if other is not claim)
            return
        shift = (claim.end - claim.base - 1).bit_length()
        slots = dict(self._levels).get(shift, {})
        for slot in {claim.base >> shift, (claim.end - 1) >> shift}:
            rest = tuple(other for other in slots.get(slot, ()) if other is not claim)
            if rest:
                slots[slot] = rest
            else:
                slots.pop(slot, None)

    def of(self, address: int, size: int, after: Claim | None) -> list[Claim]:
        """Return the claims on the whole access, behind `after` where given, in their order. It asks nobody."""
        end = address + size
        claims = [claim for shift, slots in self._levels for claim in slots.get(address >> shift, ())]
        claims += self.asked
        claims = [
            claim
            for claim in claims
            if claim.base <= address
            and end <= claim.end
            and size in claim.region.sizes
            and (after is None or claim.rank > after.rank)
        ]
        if len(claims) > 1:
            claims.sort(key=_by_rank)
        return claims

    def touching(self, base: int, end: int) -> list[Claim]:
        """Return the claims on some of `[base, end)`, in no order, some perhaps twice."""
        claims = list(self.asked)
        for shift, slots in self._levels:
            first, last = base >> shift, end - 1 >> shift
            few = last - first < len(slots)
            for slot in [slots.get(slot, ()) for slot in range(first, last + 1)] if few else list(slots.values()):
                claims += slot
        return [claim for claim in claims if claim.base < end and base < claim.end]


def _by_rank(claim: Claim) -> tuple[int, int]:
    return claim.rank


def device_error(claim: Claim, address: int, size: int, value: int | None, exc: BaseException) -> DeviceError:
    region = claim.region
    what = f"{type(exc).__name__}: {exc}"
    return DeviceError(region.device, region.name, address, address - claim.base, size, value, what)


def checked(claim: Claim, address: int, size: int, value: object) -> int:
    """The value of a read as a plain int, or `DeviceError` where it is none of that size."""
    if isinstance(value, int) and not value >> (size << 3):
        return int(value)
    region = claim.region
    shown = f"{value:#x}" if isinstance(value, int) else repr(value)
    what = f"read returned {shown}; it must be an int from 0 to {(1 << (8 * size)) - 1:#x}, or NotImplemented"
    raise DeviceError(region.device, region.name, address, address - claim.base, size, None, what)
