"""The access path of one vCPU in one address space: its own bus, then the machine's, then out.

Stands on `bus.py`; `vcpu.py` has one path for memory-mapped I/O and one for ports. An access that has
been made before, to registrations that have not changed since, is one look-up for both buses.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

from iobus.bus import HITS_LIMIT, MOST, Bus, Hits, Region
from iobus.claims import Claim, checked, device_error
from iobus.errors import RAISED
from iobus.lock import Lock

Unclaimed = Callable[[int, int, int | None], int]
"""Completes `(address, size, value written or None)` that no device claims; gives the value of a read."""


class Access(NamedTuple):
    """An access that has been completed, as an observer is told of it."""

    region: Region | None
    """Who claimed it; None where nobody did and the caller answered."""
    address: int
    size: int
    """In bytes."""
    is_write: bool
    value: int
    """What was read or written."""
    started: int
    """The host's time at its start, in ns of `time.perf_counter_ns`."""
    taken: int
    """How long the device, or the caller, took, in ns."""
    offset: int
    """From where the region was when it was asked, which its own access may move; 0 where nobody claimed it."""


class UnderWay(NamedTuple):
    """An access that a device has been asked for and has not answered yet."""

    region: Region
    address: int
    size: int
    """In bytes."""
    value: int | None
    """What is written; None for a read."""
    thread: int
    """Whose it is: a `threading.get_ident`."""
    started: int
    """As `Access.started`."""


Observer = Callable[[Access], None]


class AccessPath:
    """The way from a vCPU to the devices: `own` bus, `shared` bus, `unclaimed`.

    `lock` is held while a device is called, and not while `unclaimed` is.
    """

    def __init__(self, own: Bus, shared: Bus, lock: Lock, unclaimed: Unclaimed) -> None:
        self.own: Final = own
        self.shared: Final = shared
        self._lock: Final = lock
        self._unclaimed = unclaimed
        self._observers: tuple[Observer, ...] = ()
        self.under_way: UnderWay | None = None
        """What a device is being asked now, for who watches how long it takes. Kept only while there are observers."""
        self.on_observe: Callable[[], None] = _nothing
        """Called when `observed` may have changed; an engine that makes accesses otherwise sets it."""
        self._forget()
        own.on_change(self._forget)
        shared.on_change(self._forget)

    def observe(self, observer: Observer) -> None:
        """Call `observer` with each `Access` when it is complete, with the lock held, until `ignore`.

        Without observers an access pays nothing for them.
        """
        self._observers += (observer,)
        self._forget()  # what is remembered by-passes them
        self.on_observe()

    def ignore(self, observer: Observer) -> None:
        """Call `observer` no more."""
        self._observers = tuple(other for other in self._observers if other is not observer)
        self.on_observe()

    @property
    def observed(self) -> bool:
        """Whether there are observers: then every access must come here."""
        return bool(self._observers)

    def read(self, address: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at `address`, completed on return. Raises `DeviceError`."""
        claim = value = None
        self._lock.acquire()
        try:
            call, offset, claim = self.reads[size][address]
            value = call(offset, size)
            if type(value) is int and 0 <= value <= MOST[size]:
                return value
        except RAISED as exc:
            if claim is not None:
                raise device_error(claim, address, size, None, exc) from exc
        finally:
            self._lock.release()
        return self.read_on(address, size, claim, value)

    def write(self, address: int, size: int, value: int) -> None:
        """Write `value`, which fits `size` bytes, at `address`, completed on return. Raises `DeviceError`."""
        claim, result = None, NotImplemented
        self._lock.acquire()
        try:
            call, offset, claim = self.writes[size][address]
            result = call(offset, size, value)
        except RAISED as exc:
            if claim is not None:
                raise device_error(claim, address, size, value, exc) from exc
        finally:
            self._lock.release()
        if result is NotImplemented:
            self.write_on(address, size, value, claim)

    def read_on(self, address: int, size: int, claim: Claim | None, value: object) -> int:
        """Finish a read for which no answer is remembered (`claim` None), or whose answer is no value."""
        if claim is not None and value is not NotImplemented:
            return checked(claim, address, size, value)
        found = self.ask(address, size, None, claim)
        return self._complete(address, size, None) if found is NotImplemented else found

    def write_on(self, address: int, size: int, value: int, claim: Claim | None) -> None:
        """Finish a write for which no answer is remembered (`claim` None), or that was declined."""
        if self.ask(address, size, value, claim) is NotImplemented:
            self._complete(address, size, value)

    def ask(self, address: int, size: int, value: int | None, after: Claim | None = None) -> Any:
        """Ask the devices, those behind the decliner `after` where given; `NotImplemented` when none claims."""
        if self._observers:
            return self._ask_observed(address, size, value, after)
        # Before anything is looked up: a change meanwhile abandons this dictionary.
        hits = self.reads if value is None else self.writes
        own, shared = self.own, self.shared
        with self._lock:
            first = own
            if after is not None:
                first = after.region.bus
                result = first.search(address, size, value, after)
            elif own.low <= address < own.high:
                result = own.read(address, size) if value is None else own.write(address, size, value)
            else:
                result = NotImplemented
            if result is NotImplemented and first is own:
                result = shared.read(address, size) if value is None else shared.write(address, size, value)
        if after is None and result is not NotImplemented:
            self._remember(hits[size], address, size, value is not None)
        return result

    def _ask_observed(self, address: int, size: int, value: int | None, after: Claim | None) -> Any:
        """As `ask`, the slow way, remembering nothing, so that each access comes here."""
        region: Region | None = None
        offset = 0

        def before(asked: Region) -> None:
            nonlocal region, offset
            region, offset = asked, address - asked.base
            self.under_way = UnderWay(asked, address, size, value, get_ident(), start)

        own = self.own
        first = own if after is None else after.region.bus
        with self._lock:
            start = perf_counter_ns()
            result: Any = NotImplemented
            try:
                if first is not own or own.low <= address < own.high:
                    result = first.search(address, size, value, after, before)
                if result is NotImplemented and first is own:
                    result = self.shared.search(address, size, value, None, before)
            finally:
                self.under_way = None
            if result is not NotImplemented:
                self._tell(region, offset, address, size, value, result, start)
        return result

    def _complete(self, address: int, size: int, value: int | None) -> int:
        """Have an access completed that no device claims."""
        start = perf_counter_ns()
        result = self._unclaimed(address, size, value)
        if self._observers:
            with self._lock:
                self._tell(None, 0, address, size, value, result, start)
        return result

    def _tell(
        self, region: Region | None, offset: int, address: int, size: int, written: int | None, read: int, start: int
    ) -> None:
        value, taken = read if written is None else written, perf_counter_ns() - start
        access = Access(region, address, size, written is not None, value, start, taken, offset)
        for observer in self._observers:
            observer(access)

    def _remember(self, hits: Hits, address: int, size: int, is_write: bool) -> None:
        """Keep what the buses remember of an access."""
        for bus in (self.own, self.shared):
            if bus is self.own and not bus.low <= address < bus.high:
                continue
            hit = bus.remembered(address, size, is_write)
            if hit is None:
                return
            if hit[2] is not None:
                if len(hits) >= HITS_LIMIT:
                    hits.clear()
                hits[address] = hit
                return

    def _forget(self) -> None:
        self.reads: tuple[Hits, ...] = tuple({} for _ in MOST)
        """By size and address, which claims of both buses have answered, for an engine that looks here itself.

        What it finds it calls with the machine's lock held, and treats as `read` does. Look here anew for each
        access: each change of either bus puts other dictionaries in this place.
        """
        self.writes: tuple[Hits, ...] = tuple({} for _ in MOST)


def _nothing() -> None: ...
