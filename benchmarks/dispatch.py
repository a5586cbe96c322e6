"""What finding the device costs: ns per claimed access on buses of 1 to 10,000 devices.

`Bus.read` beside a bare call of the same devices' bound methods in the same random order, which is the
limit, and beside three other ways to find the device: the seed's linear search, `bisect` over sorted
bases, and PyPI's `intervaltree`. The others only find and call: they check nothing a bus must check.
No CPU engine is involved. The cost of the loop itself is subtracted.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Final

from benchmarks.contest import Contender, contend, pass_over
from benchmarks.device import SCRATCH, LeastDevice, MyDevice
from benchmarks.report import Row
from iobus.bus import Bus, Device

_BASE: Final = 0xC0000000
_LENGTH: Final = 0x1000
_SIZE: Final = 4
_LINEAR_MOST: Final = 1000
_SEED: Final = 2007

Read = Callable[[int, int], Any]


def run(quick: bool) -> list[Row]:
    """Measure everything and return the rows."""
    counts = (1, 64) if quick else (1, 8, 64, 1_000, 10_000)
    effort = _Effort(rounds=2, accesses=1_000) if quick else _Effort(rounds=15, accesses=20_000)
    rows: list[Row] = []
    for count in counts:
        rows += _compare(count, effort)
    rows.append(_least(counts[-1], effort))
    rows.append(_hot(counts[-1], effort))
    rows.append(_first(counts[-1], effort))
    return rows


@dataclass(frozen=True, slots=True)
class _Effort:
    rounds: int
    accesses: int
    """In each round."""


def _finding(read: Read, addresses: list[int], before: Callable[[], object] = lambda: None) -> Contender:
    def access() -> int:
        start = perf_counter_ns()
        for address in addresses:
            read(address, _SIZE)
        return perf_counter_ns() - start

    return Contender(len(addresses), access, lambda: pass_over(addresses), before)


def _bare(reads: list[Read]) -> Contender:
    def access() -> int:
        start = perf_counter_ns()
        for read in reads:
            read(SCRATCH, _SIZE)
        return perf_counter_ns() - start

    return Contender(len(reads), access, lambda: pass_over(reads))


def _compare(count: int, effort: _Effort) -> list[Row]:
    """All ways, random over `count` devices."""
    devices = [MyDevice() for _ in range(count)]
    order = _order(count, effort.accesses)
    addresses = _addresses(order)
    methods = [device.read for device in devices]
    iobus = _finding(_iobus(devices).read, addresses)
    peers = {"bare call": _bare([methods[index] for index in order])}
    notes: dict[str, str] = {}
    if count <= _LINEAR_MOST:
        peers["linear"] = _finding(LinearBus(devices).read, addresses[: max(100, len(addresses) * 8 // count)])
    peers["bisect"] = _finding(BisectBus(devices).read, addresses)
    try:
        peers["intervaltree"] = _finding(TreeBus(devices).read, addresses)
    except ImportError:
        notes["intervaltree"] = "intervaltree is not installed"
    contend([iobus, *peers.values()], effort.rounds)
    name = f"dispatch, {count:,} device{'s' if count > 1 else ''}"
    rows = [
        Row("dispatch", name, "ns", peer_name, iobus.ns, peer.ns, goal=2.0 if peer_name == "bare call" else None)
        for peer_name, peer in peers.items()
    ]
    return rows + [Row("dispatch", name, "ns", peer_name, iobus.ns, note=note) for peer_name, note in notes.items()]


def _least(count: int, effort: _Effort) -> Row:
    """The same beside the strictest limit: devices whose methods are empty."""
    devices = [LeastDevice() for _ in range(count)]
    order = _order(count, effort.accesses)
    methods = [device.read for device in devices]
    iobus, bare = _finding(_iobus(devices).read, _addresses(order)), _bare([methods[index] for index in order])
    contend([iobus, bare], effort.rounds)
    return Row("dispatch", f"dispatch, {count:,} empty devices", "ns", "bare call", iobus.ns, bare.ns)


def _hot(count: int, effort: _Effort) -> Row:
    """One register only: on a bus of many, and on a bus of its own."""
    devices = [MyDevice() for _ in range(count)]
    among = _finding(_iobus(devices).read, _addresses([count // 2] * effort.accesses))
    alone = _finding(_iobus(devices[:1]).read, _addresses([0] * effort.accesses))
    contend([among, alone], effort.rounds)
    return Row("dispatch", f"one register of {count:,} devices", "ns", "bus of 1", among.ns, alone.ns, goal=1.0)


def _first(count: int, effort: _Effort) -> Row:
    """Each register once after a change of the registrations, which drops what the bus remembered."""
    devices = [MyDevice() for _ in range(count)]
    bus = _iobus(devices)
    other = bus.attach(MyDevice(), 0, _LENGTH)
    addresses = _addresses(random.Random(_SEED).sample(range(count), count))
    iobus = _finding(bus.read, addresses, before=lambda: other.move(0))
    peer = _finding(BisectBus(devices).read, addresses)
    contend([iobus, peer], effort.rounds)
    return Row("dispatch", f"first access of {count:,} devices", "ns", "bisect", iobus.ns, peer.ns)


def _order(count: int, accesses: int) -> list[int]:
    return random.Random(_SEED).choices(range(count), k=accesses)


def _addresses(order: list[int]) -> list[int]:
    return [_BASE + index * _LENGTH + SCRATCH for index in order]


def _iobus(devices: Sequence[Device]) -> Bus:
    bus = Bus()
    for index, device in enumerate(devices):
        bus.attach(device, _BASE + index * _LENGTH, _LENGTH)
    return bus


class _Entry:
    """A device and its range, as the peers keep them."""

    __slots__ = ("base", "device", "end", "read")

    def __init__(self, device: Device, base: int) -> None:
        self.device = device
        self.base = base
        self.end = base + _LENGTH
        self.read = device.read

    def in_range(self, address: int) -> bool:
        """The seed's callback."""
        return self.base <= address < self.end


def _entries(devices: Sequence[Device]) -> list[_Entry]:
    return [_Entry(device, _BASE + index * _LENGTH) for index, device in enumerate(devices)]


class LinearBus:
    """The seed's: an array searched from its front by asking each device's `in_range`."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._entries = _entries(devices)

    def read(self, address: int, size: int) -> Any:
        """Ask the first device that says it is in range."""
        for entry in self._entries:
            if entry.in_range(address):
                return entry.read(address - entry.base, size)
        return NotImplemented


class BisectBus:
    """Sorted bases, searched by halves."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._entries = _entries(devices)
        self._bases = [entry.base for entry in self._entries]

    def read(self, address: int, size: int) -> Any:
        """Ask the device with the highest base at or below `address`."""
        index = bisect.bisect_right(self._bases, address) - 1
        if index >= 0:
            entry = self._entries[index]
            if address + size <= entry.end:
                return entry.read(address - entry.base, size)
        return NotImplemented


class TreeBus:
    """An interval tree, from PyPI."""

    def __init__(self, devices: Sequence[Device]) -> None:
        # Here, for it may be missing: then the row says so.
        from intervaltree import Interval, IntervalTree  # type: ignore[import-untyped]

        self._tree = IntervalTree(Interval(entry.base, entry.end, entry.read) for entry in _entries(devices))

    def read(self, address: int, size: int) -> Any:
        """Ask a device whose interval holds `address`."""
        for interval in self._tree[address]:
            return interval.data(address - interval.begin, size)
        return NotImplemented
