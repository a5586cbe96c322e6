"""The plain reference that `iobus.bus.Bus` is held against: the seed's bus, a list searched from its front.

It keeps no index and remembers nothing. What iobus adds to the seed (priorities, whole-access containment,
sizes, byte order, declining) is written here as plainly as it can be said, byte by byte, and shares no
code with `bus.py`.
"""

from __future__ import annotations

from typing import Any


class LinearError(Exception):
    """The counterpart of `DeviceError`, with the same fields."""

    def __init__(self, region: LinearRegion, address: int, size: int, value: int | None) -> None:
        super().__init__(region.name)
        self.region = region.name
        self.address = address
        self.offset = address - region.base
        self.size = size
        self.value = value


class LinearRegion:
    """One entry of the list."""

    def __init__(
        self,
        bus: LinearBus,
        device: Any,
        base: int | None,
        length: int | None,
        name: str,
        priority: int,
        sizes: tuple[int, ...],
        implements: tuple[int, ...],
        endian: str,
    ) -> None:
        self.bus, self.device, self.name, self.priority = bus, device, name, priority
        self.asks = base is None
        self.base = base or 0
        self.length = bus.size if length is None else length
        self.sizes, self.implements, self.endian = sizes, implements, endian
        self.enabled = True

    def move(self, base: int) -> None:
        self.base = base

    def enable(self, on: bool = True) -> None:
        self.enabled = on

    def detach(self) -> None:
        self.bus.regions.remove(self)

    def claims(self, address: int, size: int) -> bool:
        """Whether every byte of the access is this region's."""
        if not self.enabled or size not in self.sizes:
            return False
        if any(not self.base <= byte < self.base + self.length for byte in range(address, address + size)):
            return False
        return not self.asks or bool(self.device.in_range(address, size))

    def pieces(self, offset: int, size: int) -> list[tuple[int, int]]:
        """The accesses that the device sees, as (offset, size)."""
        if size in self.implements:
            return [(offset, size)]
        smaller = [unit for unit in self.implements if unit < size and offset % unit == 0]
        unit = max(smaller) if smaller else min(self.implements)
        starts = sorted({byte // unit * unit for byte in range(offset, offset + size)})
        return [(start, unit) for start in starts]

    def read_piece(self, start: int, unit: int, into: dict[int, int]) -> bool:
        value = self.device.read(start, unit)
        if value is NotImplemented:
            return False
        if not isinstance(value, int) or not 0 <= value < 256**unit:
            raise ValueError(value)
        for index in range(unit):
            place = index if self.endian == "little" else unit - 1 - index
            into[start + index] = value // 256**place % 256
        return True

    def read(self, offset: int, size: int) -> Any:
        found: dict[int, int] = {}
        for start, unit in self.pieces(offset, size):
            if not self.read_piece(start, unit, found):
                return NotImplemented
        return sum(found[offset + index] * 256**index for index in range(size))

    def write(self, offset: int, size: int, value: int) -> Any:
        new = {offset + index: value // 256**index % 256 for index in range(size)}
        for start, unit in self.pieces(offset, size):
            held: dict[int, int] = {}
            if any(byte not in new for byte in range(start, start + unit)) and not self.read_piece(start, unit, held):
                return NotImplemented
            piece = 0
            for index in range(unit):
                place = index if self.endian == "little" else unit - 1 - index
                piece += new.get(start + index, held.get(start + index, 0)) * 256**place
            if self.device.write(start, unit, piece) is NotImplemented:
                return NotImplemented
        return None


class LinearBus:
    """The list, and the search."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.regions: list[LinearRegion] = []
        self.last: Any = None
        """The region that claimed the last claimed access."""
        self.order: dict[LinearRegion, int] = {}

    def attach(
        self,
        device: Any,
        base: int | None = None,
        length: int | None = None,
        *,
        name: str,
        priority: int = 0,
        sizes: tuple[int, ...] = (1, 2, 4, 8),
        implements: tuple[int, ...] | None = None,
        endian: str = "little",
    ) -> LinearRegion:
        region = LinearRegion(self, device, base, length, name, priority, sizes, implements or sizes, endian)
        self.regions.append(region)
        self.order[region] = len(self.order)
        return region

    def access(self, address: int, size: int, value: int | None) -> Any:
        """Walk the list as it stands whenever the next device is asked; each place in the order once."""
        passed: tuple[int, int] | None = None
        while True:
            places = sorted((-region.priority, self.order[region], region.name) for region in self.regions)
            behind = [place for place in places if passed is None or place[:2] > passed]
            if not behind:
                return NotImplemented
            passed = behind[0][:2]
            (region,) = (region for region in self.regions if self.order[region] == passed[1])
            base = region.base  # the access under way keeps the base it found
            failure = LinearError(region, address, size, value)
            try:
                if not region.claims(address, size):
                    continue
                result = (
                    region.read(address - base, size) if value is None else region.write(address - base, size, value)
                )
            except Exception as exc:
                raise failure from exc
            if result is NotImplemented:
                continue
            if value is None and (not isinstance(result, int) or not 0 <= result < 256**size):
                raise failure
            self.last = region
            return result

    def read(self, address: int, size: int) -> Any:
        return self.access(address, size, None)

    def write(self, address: int, size: int, value: int) -> Any:
        return self.access(address, size, value)
