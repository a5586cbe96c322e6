"""Who answers an address: `Device`, `Region` and `Bus`. The ground floor.

A device claims a range of a bus (a `Region`), or says at each access whether it claims it
(`in_range`, the callback of the 2007 KVM patch this project grew from). `Bus.read` and `Bus.write`
hand an access to the first claimant in order: higher priority, then earlier registration. A
claimant that returns `NotImplemented` declines and the next is asked; when none is left the bus
itself returns `NotImplemented` and its caller (`vcpu.py`) asks the next bus.

How a lookup stays flat however many devices there are:

1. `_reads[size][address]`: the answer of an earlier lookup of just this access, also "nobody".
   Every change of the registrations replaces these dictionaries, so an entry is never out of
   date. An access that an `in_range` callback has a say in is never remembered.
2. `_claims`: filed by size and place, so that a lookup looks into a handful of slots (claims.py).

No lookup takes a lock. `tests/test_bus_property.py` holds all this beside a linear search.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from iobus.claims import Claim, Claims, checked, device_error
from iobus.doorbell import Doorbell, ringing
from iobus.errors import RAISED
from iobus.errors import BusFullError as BusFullError
from iobus.errors import DeviceError as DeviceError
from iobus.errors import IobusError as IobusError
from iobus.errors import RegistrationError as RegistrationError
from iobus.widths import SIZES as SIZES
from iobus.widths import Endian, adapter
from iobus.widths import Value as Value

MOST: Final = tuple((1 << 8 * size) - 1 for size in range(max(SIZES) + 1))
"""By size in bytes, the most a value can be."""
HITS_LIMIT: Final = 1 << 16  # a guest can touch any address: bound what its accesses make us keep


class Device:
    """What answers accesses. Subclass it and define `read` and `write`.

    Any object with these two methods can be attached; the base class adds a name, the default of
    declining, and `reset`.
    """

    name: str = ""
    """Shown in maps, traces and errors; empty means the class's name."""
    part_of: Any = None
    """The device this one is a part of, where one has several on the bus: DMA sees the whole (see `Machine.dma`)."""
    buses: tuple[Bus, ...] = ()
    """The buses it is the host of: a machine's `devices`, and with them its reset, know by this what is behind it."""
    acpi_id: str = ""
    """The hardware ID by which a guest finds a driver, such as "ABCD0001"; empty means that guests are not told."""

    def read(self, offset: int, size: int) -> Value:
        """Return the value, below `2 ** (8 * size)`, or `NotImplemented` to decline.

        `offset` is in bytes from the region's base (the address itself for an `in_range`
        registration); `size` is 1, 2, 4 or 8 bytes.
        """
        return NotImplemented  # type: ignore[no-any-return]

    def write(self, offset: int, size: int, value: int) -> object:
        """Take `value`. Return nothing, or `NotImplemented` to decline."""
        return NotImplemented

    def reset(self) -> None:
        """Return to the power-on state. Called when the machine is reset."""


Hit = tuple[Callable[..., Any], int, Any]
"""What to call, the offset to give it, and the `Claim` it is of (None: nobody's)."""
Hits = dict[int, Hit]
"""By address, the answer of an earlier lookup."""


class Region:
    """A device's claim on `[base, base + length)`. Made by `Bus.attach`."""

    def __init__(
        self,
        bus: Bus,
        device: Any,
        base: int,
        length: int,
        order: int,
        *,
        name: str,
        priority: int,
        sizes: tuple[int, ...],
        implements: tuple[int, ...],
        endian: Endian,
        in_range: Callable[[int, int], bool] | None,
    ) -> None:
        self.bus: Final = bus
        self.device: Final = device
        self.name: Final = name
        self.length: Final = length
        """In bytes; the whole bus for an `in_range` registration."""
        self.priority: Final = priority
        self.sizes: Final = sizes
        self.implements: Final = implements
        self.endian: Final = endian
        self.in_range: Final = in_range
        self._rank = (-priority, order)
        self._base = base
        self._enabled = True
        self._attached = True
        self._coalesce = False
        self._doorbells: tuple[Doorbell, ...] = ()
        self._read, self._write = adapter(device, sizes, implements, endian)
        self._claim = self._make_claim()

    def __repr__(self) -> str:
        state = " detached" if not self._attached else "" if self._enabled else " disabled"
        return f"<Region {self.name!r} {self._base:#x}+{self.length:#x} on {self.bus.name!r}{state}>"

    @property
    def base(self) -> int:
        """The first address, in bytes; 0 for an `in_range` registration."""
        return self._base

    @property
    def enabled(self) -> bool:
        """Whether the region answers."""
        return self._enabled

    @property
    def attached(self) -> bool:
        """False once `detach` was called: a detached region stays so."""
        return self._attached

    @property
    def claim(self) -> Claim:
        """Its standing now; for an engine that has its accesses otherwise than by the bus."""
        return self._claim

    @property
    def doorbells(self) -> tuple[Doorbell, ...]:
        """The doorbells that are not closed."""
        return self._doorbells

    @property
    def coalesce(self) -> bool:
        """Whether an engine may keep the guest's writes for a moment and bring several at once; False at first.

        The device sees all its accesses in the guest's order, each write before any later access of the guest to any
        device, before `run` returns and before a timer fires, and 10 ms later at most. Only KVM makes use of it.
        """
        return self._coalesce

    @coalesce.setter
    def coalesce(self, on: bool) -> None:
        with self.bus._change:
            self._must_be_attached("coalesce writes to")
            if on != self._coalesce:
                self._coalesce = on
                self._refile()

    def doorbell(self, offset: int, size: int, value: int | None = None) -> Doorbell:
        """Have a guest's write of `size` bytes at `offset` fire the returned event, and not reach the device.

        With `value`, only a write of that value, as the device would be given it. `offset` in bytes from the
        region's base, `size` one of the region's `sizes`: the size that the guest uses, which `implements` does not
        change. The doorbell moves, is disabled and leaves with the region; `close` ends it. Raises
        `RegistrationError` for what cannot be.
        """
        what = f"region {self.name!r}: doorbell of {size} bytes at offset {offset:#x}"
        if self.in_range is not None:
            raise RegistrationError(f"{what}: a region that in_range claims has no doorbells")
        if size not in self.sizes:
            raise RegistrationError(f"{what}: guests may use the sizes {self.sizes} here")
        if offset < 0 or offset + size > self.length:
            raise RegistrationError(f"{what}: the region has {self.length:#x} bytes")
        if value is not None and (value < 0 or value >> 8 * size):
            raise RegistrationError(
                f"{what}: value={value:#x} does not fit; use 0 to {(1 << 8 * size) - 1:#x}, or None"
            )
        bell = Doorbell(offset, size, value, self.endian, self._remove_doorbell)
        with self.bus._change:
            self._must_be_attached("give a doorbell to")
            if taken := next((other for other in self._doorbells if other.collides(bell)), None):
                raise RegistrationError(f"{what}: such writes are {taken!r}'s; close that first")
            self._doorbells += (bell,)
            self._refile()
        return bell

    def _remove_doorbell(self, bell: Doorbell) -> None:
        with self.bus._change:
            self._doorbells = tuple(other for other in self._doorbells if other is not bell)
            if self._attached:
                self._refile()

    def move(self, base: int) -> None:
        """Claim `[base, base + length)` from now on, also from inside this region's own access.

        The access under way is not affected; the next one sees the new base. The region keeps its
        place in the order. Raises `RegistrationError` where the range does not fit the bus, the
        region was detached, or its claim is `in_range`'s to tell.
        """
        if self.in_range is not None:
            raise RegistrationError(f"region {self.name!r} is claimed by in_range: it has no base to move")
        self.bus._check_range(self.name, base, self.length, self.implements)
        with self.bus._change:
            self._must_be_attached("move")
            self._base = base
            self._refile()

    def enable(self, on: bool = True) -> None:
        """Answer accesses (`True`) or leave them to the next claimant (`False`)."""
        with self.bus._change:
            self._must_be_attached("enable" if on else "disable")
            if on != self._enabled:
                self._enabled = on
                self._refile()

    def detach(self) -> None:
        """Leave the bus for good. An access that starts afterwards does not reach the device."""
        with self.bus._change:
            self._must_be_attached("detach")
            self._attached = False
            self.bus._remove(self._claim if self._enabled else None, self)

    def _make_claim(self) -> Claim:
        write = ringing(self._write, self._doorbells) if self._doorbells else self._write
        return Claim(self, self._base, self._base + self.length, self._rank, self._read, write, self.in_range)

    def _refile(self) -> None:
        """Put the claim where `_base` and `_enabled` say. `bus._change` is held."""
        old, self._claim = self._claim, self._make_claim()
        # The new claim first: an access in between finds the region at one base or the other.
        if self._enabled:
            self.bus._file(self._claim)
        self.bus._unfile(old)
        self.bus._mark(self, self._enabled and bool(self._coalesce or self._doorbells))
        self.bus._forget()

    def _must_be_attached(self, verb: str) -> None:
        if not self._attached:
            raise RegistrationError(f"cannot {verb} region {self.name!r}: it was detached; attach the device again")


class Bus:
    """An address space of `size` bytes and the devices registered on it.

    Used for memory-mapped I/O and, with `size=0x10000`, for ports. A `capacity` makes `attach`
    raise `BusFullError` beyond that many regions; the default is no limit. All methods may be
    called from any thread; devices' callbacks are not serialised here (`vcpu.py` does that).
    """

    def __init__(self, size: int = 1 << 52, *, name: str = "mmio", capacity: int | None = None) -> None:
        self.size: Final = size
        self.name: Final = name
        self.capacity: Final = capacity
        # Guards what follows against other writers; a leaf lock: with it held, nothing is called but `_watchers`.
        self._change = threading.Lock()
        self._order = 0
        self._regions: dict[Region, None] = {}  # ordered, and cheap to leave
        self._claims = Claims()
        self._watchers: list[Callable[[], None]] = []
        self.shortcuts: tuple[Region, ...] = ()
        """The enabled regions with doorbells or coalesced writes, for an engine that has those nearer to the guest."""
        self.low, self.high = size, 0
        """No region was ever in `[0, low)` or `[high, size)`: a quick "not here" for who has two buses."""
        self._forget()

    @property
    def regions(self) -> tuple[Region, ...]:
        """The attached regions, in the order of their registration."""
        with self._change:
            return tuple(self._regions)

    def attach(
        self,
        device: Any,
        base: int | None = None,
        length: int | None = None,
        *,
        name: str | None = None,
        priority: int = 0,
        sizes: tuple[int, ...] = SIZES,
        implements: tuple[int, ...] | None = None,
        endian: Endian = "little",
    ) -> Region:
        """Register `device` for `[base, base + length)`; it answers once this returns.

        Without `base`, the device's `in_range(address, size)` is asked at each access, and its
        `offset` is the address itself. `length` in bytes defaults to the device's `length`.

        `sizes` are the access sizes, in bytes, that guests may use; the region does not claim
        others. `implements` are those that the device's methods handle (default: `sizes`). An
        access of such a size reaches the device as it is, aligned or not; the bus splits a larger
        one into aligned pieces, lowest address first, and serves a smaller one from the smallest
        implemented unit, aligned, that holds it (a smaller write reads the unit first). A device
        that declines one piece declines the access, though it has seen the pieces before. With
        `endian="big"` the most significant byte is at the lowest address.

        Raises `RegistrationError` for what cannot be, `BusFullError` when the capacity is used up, `TypeError` for a
        class where a device of it is meant.
        """
        must_be_instance(device)
        if name is None:
            name = getattr(device, "name", "") or type(device).__name__
        if not isinstance(name, str):
            raise RegistrationError(f"{type(device).__name__} has the name {name!r}; a region's name is a str")
        for method in ("read", "write"):
            if not callable(getattr(device, method, None)):
                raise RegistrationError(
                    f"region {name!r}: {type(device).__name__} has no method {method!r}; "
                    "a device defines read(offset, size) and write(offset, size, value)"
                )
        implements = sizes if implements is None else implements
        for what, given in (("sizes", sizes), ("implements", implements)):
            if not given or any(size not in SIZES for size in given):
                raise RegistrationError(f"region {name!r}: {what}={given!r}; use some of {SIZES}")
        if endian not in ("little", "big"):
            raise RegistrationError(f"region {name!r}: endian={endian!r}; use 'little' or 'big'")
        in_range = None
        if base is None:
            in_range = getattr(device, "in_range", None)
            if in_range is None or length is not None:
                raise RegistrationError(
                    f"region {name!r}: give a base and a length, or neither and let "
                    f"{type(device).__name__} define in_range(address, size)"
                )
            base, length = 0, self.size
        else:
            length = getattr(device, "length", None) if length is None else length
            self._check_range(name, base, length, implements)
            assert length is not None
        with self._change:
            if self.capacity is not None and len(self._regions) >= self.capacity:
                raise BusFullError(
                    f"bus {self.name!r} holds its capacity of {self.capacity} regions: no room for {name!r}"
                )
            self._order += 1
            region = Region(
                self, device, base, length, self._order, name=name, priority=priority,
                sizes=tuple(sorted(set(sizes))), implements=tuple(sorted(set(implements))),
                endian=endian, in_range=in_range,
            )  # fmt: skip
            self._regions[region] = None
            self._file(region._claim)
            self._forget()
        return region

    def read(self, address: int, size: int) -> Value:
        """Read `size` bytes (1, 2, 4 or 8) at `address`; `NotImplemented` when no device claims it.

        Raises `DeviceError` when a device does, `ValueError` for another size.
        """
        hit = None
        try:
            # Not unpacked: a claim that is not looked at need not be fetched into the cache.
            hit = self._reads[size][address]
            value = hit[0](hit[1], size)
            if type(value) is int and 0 <= value <= MOST[size]:
                return value
        except RAISED as exc:
            if hit is not None:
                raise device_error(hit[2], address, size, None, exc) from exc
        if hit is None:  # not inside the except: a device's exception would show the KeyError
            return self.search(address, size, None, None)  # type: ignore[no-any-return]
        if value is not NotImplemented:
            return checked(hit[2], address, size, value)
        return value if hit[2] is None else self.search(address, size, None, hit[2])

    def write(self, address: int, size: int, value: int) -> object:
        """Write `size` bytes at `address`; return `NotImplemented` when no device claims it.

        Raises `DeviceError` when a device does, `ValueError` for another size or a value that
        does not fit it.
        """
        if value >> (size << 3):
            raise ValueError(f"value {value:#x} does not fit in {size} bytes")
        hit = None
        try:
            hit = self._writes[size][address]
            result = hit[0](hit[1], size, value)
        except RAISED as exc:
            if hit is not None:
                raise device_error(hit[2], address, size, value, exc) from exc
        if hit is None:
            return self.search(address, size, value, None)
        if result is NotImplemented:
            return result if hit[2] is None else self.search(address, size, value, hit[2])
        return None

    def find(self, address: int, size: int = 1) -> Region | None:
        """Return the region that is asked first for an access, or None."""
        claim = self._next(address, size, None, None)
        return claim.region if claim else None

    def ask(self, address: int, size: int, value: int | None, before: Callable[[Region], None]) -> object:
        """As `read` (`value` None) or `write`, with `before(region)` called ahead of each device asked.

        What `before` raises ends the access.
        """
        return self.search(address, size, value, None, before)

    def remembered(self, address: int, size: int, is_write: bool) -> Hit | None:
        """Return what is remembered of an access, or None."""
        return (self._writes if is_write else self._reads)[size].get(address)

    def is_contested(self, base: int, length: int, region: Region | None = None) -> bool:
        """Whether a claimant in front of `region` (None: any) may be asked for an access in `[base, base + length)`.

        It asks no device, takes no lock, and where it cannot tell says yes.
        """
        claims = self._claims.touching(base, base + length)
        return any(region is None or claim.rank < region._rank for claim in claims)

    def on_change(self, forget: Callable[[], None]) -> None:
        """Have `forget()` called at the end of each change of the registrations, with the bus's inner lock held.

        It must drop what `remembered` gave or follow `shortcuts`, and do nothing else.
        """
        with self._change:
            self._watchers.append(forget)

    # The slow path: the first access at an address, and a decliner's successors.

    def search(
        self,
        address: int,
        size: int,
        value: int | None,
        after: Claim | None,
        before: Callable[[Region], None] | None = None,
    ) -> Any:
        """Ask the claimants behind the decliner `after`, in the order that holds when each is asked."""
        hits = (self._reads if value is None else self._writes).get(size)
        # `hits` before the search: a change meanwhile abandons this dictionary.
        if hits is None:
            raise ValueError(f"access of {size!r} bytes at {address:#x}: a bus access has 1, 2, 4 or 8")
        remember = after is None
        while True:
            claim = self._next(address, size, value, after)
            if remember and not any(claim is None or other.rank <= claim.rank for other in self._claims.asked):
                if len(hits) >= HITS_LIMIT:
                    hits.clear()
                call = _nobody if claim is None else claim.read if value is None else claim.write
                hits[address] = call, 0 if claim is None else address - claim.base, claim
            remember, after = False, claim
            if claim is None:
                return NotImplemented
            if before is not None:
                before(claim.region)
            offset = address - claim.base
            try:
                result: Any = claim.read(offset, size) if value is None else claim.write(offset, size, value)
            except RAISED as exc:
                raise device_error(claim, address, size, value, exc) from exc
            if result is NotImplemented:
                continue
            return checked(claim, address, size, result) if value is None else None

    def _next(self, address: int, size: int, value: int | None, after: Claim | None) -> Claim | None:
        """The claim on the whole access that comes first in order, behind `after` where given."""
        for claim in self._claims.of(address, size, after):
            if claim.asked is None:
                return claim
            try:
                if claim.asked(address, size):
                    return claim
            except RAISED as exc:
                raise device_error(claim, address, size, value, exc) from exc
        return None

    # Registration. `_change` is held in all of these.

    def _check_range(self, name: str, base: int, length: int | None, implements: tuple[int, ...]) -> None:
        if length is None or length <= 0:
            raise RegistrationError(f"region {name!r}: length={length!r}; give its length in bytes, 1 or more")
        if base < 0 or base + length > self.size:
            raise RegistrationError(
                f"region {name!r}: [{base:#x}, {base + length:#x}) does not lie in bus {self.name!r} "
                f"of {self.size:#x} bytes"
            )
        unit = min(implements)
        if length % unit:
            raise RegistrationError(
                f"region {name!r}: length {length:#x} is no multiple of the {unit} bytes "
                "of its smallest implemented access"
            )

    def _file(self, claim: Claim) -> None:
        # First, so that no access takes the new claim for impossible. They never shrink: that is rare.
        self.low, self.high = min(self.low, claim.base), max(self.high, claim.end)
        self._claims.file(claim)

    def _unfile(self, claim: Claim) -> None:
        self._claims.unfile(claim)

    def _remove(self, claim: Claim | None, region: Region) -> None:
        del self._regions[region]
        if claim is not None:
            self._unfile(claim)
        self._mark(region, False)
        self._forget()

    def _mark(self, region: Region, on: bool) -> None:
        if on or region in self.shortcuts:
            self.shortcuts = (*(other for other in self.shortcuts if other is not region), *[region] * on)

    def _forget(self) -> None:
        """Drop remembered lookups. The last step of a change: what a lookup finds now is new."""
        self._reads: dict[int, Hits] = {size: {} for size in SIZES}
        self._writes: dict[int, Hits] = {size: {} for size in SIZES}
        for forget in self._watchers:  # last: they look at the two above
            forget()


def must_be_instance(device: object) -> None:
    """Raise `TypeError` for a class: its methods are there, but there is no device to call them on."""
    if isinstance(device, type):
        name = device.__name__
        raise TypeError(f"attach {name}(), an instance; got the class {name}")


def _nobody(*access: int) -> Value:
    """What a remembered lookup calls where no device claims the access."""
    return NotImplemented  # type: ignore[no-any-return]
