"""The guest's writes that the kernel takes without an exit: doorbells as ioeventfds, coalesced writes in its ring.

Beside `ram.py`; `engine.py` keeps one, and `cpu.py` empties the ring ahead of each exit that it deals with. What is
registered here is only what makes no difference (docs/doorbells.md): a write that the kernel leaves comes out and
is the bus's, which does the same. By the kernel's Documentation/virt/kvm/api.rst, 4.59 and 4.116.

Locks: `Machine.lock`, then a `Bus`'s own, then `Shortcuts._lock`, a leaf.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from iobus.bus import Bus, Region
from iobus.claims import Claim, device_error
from iobus.dma import whole
from iobus.doorbell import Doorbell
from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.vm import Vm
from iobus.errors import RAISED
from iobus.exits import MmioExit
from iobus.machine import Machine
from iobus.memory import PAGE_SIZE

if TYPE_CHECKING:
    from iobus.vcpu import VCPU

LATEST: Final = 0.01  # seconds: how long a coalesced write waits at most
CAPACITY: Final = (PAGE_SIZE - ctypes.sizeof(abi.CoalescedMmioRing)) // ctypes.sizeof(abi.CoalescedMmio)
"""The ring's places; one of them stays free."""

_HEAD: Final = ctypes.sizeof(abi.CoalescedMmioRing)
_ENTRY: Final = ctypes.sizeof(abi.CoalescedMmio)
_LENGTH: Final = abi.offset(abi.CoalescedMmio, "len")
_DATA: Final = abi.offset(abi.CoalescedMmio, "data")

_NOBODY: Final[Any] = object()


class _Bell(NamedTuple):
    """What an ioeventfd is registered by."""

    is_port: bool
    address: int
    size: int
    raw: int | None


class _Zone(NamedTuple):
    """What coalesced writes are registered by."""

    base: int
    size: int


class _Write(NamedTuple):
    """A coalesced write on its way."""

    claim: Claim | Any
    """Whose it was when the guest made it; None for "ask the bus", `_NOBODY` where all have declined."""
    address: int
    size: int
    value: int


class Shortcuts:
    """What `vm`'s kernel takes of `machine`'s writes. `is_running()` says whether a vCPU runs; `wake` has all look."""

    def __init__(self, vm: Vm, machine: Machine, is_running: Callable[[], bool], wake: Callable[[], None]) -> None:
        self._vm: Final = vm
        self._machine: Final = machine
        self._is_running = is_running
        self._wake = wake
        self._lock = threading.Lock()
        self._bells: dict[_Bell, Doorbell] = {}
        self.zones: Final[dict[_Zone, Claim]] = {}
        """What the kernel coalesces; while there is none, its ring is empty."""
        self.stale = False
        """`sync` is due before guest code runs."""
        self.waiting: Final[deque[_Write]] = deque()
        """Taken from the ring and not yet brought: older than what is in it."""
        self._page = vm.offers(ioctls.KVM_CAP_COALESCED_MMIO)
        self._can_ring = bool(vm.offers(ioctls.KVM_CAP_IOEVENTFD))
        self._u32: memoryview | None = None
        self._u64: memoryview | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        for bus in machine.buses:
            bus.on_change(self.changed)
        for vcpu in machine.vcpus:
            vcpu.mmio_path.on_observe = vcpu.pio_path.on_observe = self.changed

    def find_ring(self, shared: memoryview) -> tuple[int, int]:
        """Learn of the ring in the memory that a vCPU shares; return its two indices' places, in units of 4 bytes."""
        at = self._page * PAGE_SIZE
        if self._u32 is None and self._page:
            ring = shared[at : at + PAGE_SIZE]
            self._u32, self._u64 = ring.cast("I"), ring.cast("Q")
        return at >> 2, (at >> 2) + (1 if self._page else 0)  # without a ring: one place twice, which is never unequal

    def close(self) -> None:
        """Bring nothing more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        for view in (self._u32, self._u64):
            if view is not None:
                view.release()

    # What the kernel is told. `changed` may be called with a bus's lock held.

    def changed(self) -> None:
        """The registrations, or who observes, have become different."""
        machine = self._machine
        with self._lock:  # a `sync` under way may be about to register what has just left
            registered = bool(self._bells or self.zones)
        if registered:
            self.stale = True
            self.sync()  # now: what has left must not be the kernel's any more
        elif machine.mmio.shortcuts or machine.pio.shortcuts:
            self.stale = True
            if self._is_running():
                self.sync()

    def sync(self) -> None:
        """Have the kernel take what can be taken now, and nothing else."""
        with self._lock:
            self.stale = False
            bells, zones = self._wanted()
            for bell in [bell for bell, doorbell in self._bells.items() if bells.get(bell) is not doorbell]:
                self._ioeventfd(bell, self._bells.pop(bell), ioctls.KVM_IOEVENTFD_FLAG_DEASSIGN)
            gone = [zone for zone, claim in self.zones.items() if zones.get(zone) is not claim]
            for zone in gone:
                self._coalesce(zone, ioctls.KVM_UNREGISTER_COALESCED_MMIO)
            if gone:
                self._take()  # they are of those who had the zones
            for zone in gone:
                del self.zones[zone]
            # What the kernel has no room for comes out.
            for bell in bells.keys() - self._bells.keys():
                with contextlib.suppress(OSError):
                    self._ioeventfd(bell, bells[bell], 0)
                    self._bells[bell] = bells[bell]
            for zone in zones.keys() - self.zones.keys():
                self.zones[zone] = zones[zone]  # before the kernel has it: from then on the run loops look at the ring
                try:
                    self._coalesce(zone, ioctls.KVM_REGISTER_COALESCED_MMIO)
                except OSError:
                    del self.zones[zone]
            if self.zones and self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._main, name="iobus-kvm-coalesced", daemon=True)
                self._thread.start()

    def _wanted(self) -> tuple[dict[_Bell, Doorbell], dict[_Zone, Claim]]:
        bells: dict[_Bell, Doorbell] = {}
        zones: dict[_Zone, Claim] = {}
        machine = self._machine
        if any(path.observed for vcpu in machine.vcpus for path in (vcpu.mmio_path, vcpu.pio_path)):
            return bells, zones
        mmio, pio = machine.mmio.shortcuts, machine.pio.shortcuts
        late = {id(whole(region.device)) for region in mmio if region.coalesce}
        for region in (*mmio, *pio):
            is_port, base = region.bus is machine.pio, region.base
            if self._can_ring and id(whole(region.device)) not in late:
                for bell in region.doorbells:
                    if self._is_first(region, base + bell.offset, bell.size):
                        bells[_Bell(is_port, base + bell.offset, bell.size, bell.raw)] = bell
            if self._page and region.coalesce and not is_port and self._is_first(region, base, region.length):
                for low, high in _gaps(region):
                    zones[_Zone(base + low, high - low)] = region.claim
        return bells, zones

    def _is_first(self, region: Region, base: int, length: int) -> bool:
        """Whether all vCPUs' accesses there are `region`'s before anybody's."""
        buses: list[Bus] = [vcpu.pio if region.bus is self._machine.pio else vcpu.mmio for vcpu in self._machine.vcpus]
        return not region.bus.is_contested(base, length, region) and not any(
            base < own.high and own.low < base + length and own.is_contested(base, length) for own in buses
        )

    def _ioeventfd(self, bell: _Bell, doorbell: Doorbell, flags: int) -> None:
        flags |= ioctls.KVM_IOEVENTFD_FLAG_PIO if bell.is_port else 0
        flags |= 0 if bell.raw is None else ioctls.KVM_IOEVENTFD_FLAG_DATAMATCH
        request = abi.Ioeventfd(
            datamatch=bell.raw or 0, addr=bell.address, len=bell.size, fd=doorbell.fileno(), flags=flags
        )
        fcntl.ioctl(self._vm.fd, ioctls.KVM_IOEVENTFD, request)

    def _coalesce(self, zone: _Zone, request: ioctls.Ioctl) -> None:
        fcntl.ioctl(self._vm.fd, request, abi.CoalescedMmioZone(addr=zone.base, size=zone.size))

    # Coalesced writes.

    def drain(self, vcpu: VCPU | None) -> None:
        """Bring all coalesced writes. Raises `DeviceError`; the next call then goes on behind the failed one.

        What nobody claims `vcpu`'s caller answers, which may raise. Without a vCPU it is left, with what comes after
        it, for one that looks.
        """
        while (unclaimed := self._bring()) is not None:
            if vcpu is None:
                self.waiting.appendleft(unclaimed._replace(claim=_NOBODY))
                self._wake()
                return
            vcpu.executor.unclaimed(MmioExit(unclaimed.address, unclaimed.size, True, unclaimed.value))

    def flush(self) -> None:
        """Bring all coalesced writes, from any thread but a device's callback; what a device raises, `run` does."""
        if not (self.zones or self.waiting):
            return
        try:
            self.drain(None)
        except Exception as exc:
            self._machine.fail(exc)

    def drop(self) -> None:
        """Forget the writes under way: the machine is reset."""
        with self._lock:
            self._take()
            self.waiting.clear()

    def _bring(self) -> _Write | None:
        """Bring writes, the lock held for all, until there are none or one is nobody's, which is returned."""
        waiting, bus = self.waiting, self._machine.mmio
        with self._machine.lock:
            with self._lock:
                self._take()
            while waiting:
                write = waiting.popleft()
                claim, address, size, value = write
                if claim is _NOBODY:
                    return write
                if size not in (1, 2, 4, 8):
                    waiting.extendleft(reversed(list(_elements(write))))
                    continue
                if claim is None:
                    result = bus.write(address, size, value)
                else:
                    try:
                        result = claim.write(address - claim.base, size, value)
                    except RAISED as exc:
                        raise device_error(claim, address, size, value, exc) from exc
                    if result is NotImplemented:
                        result = bus.search(address, size, value, claim)
                if result is NotImplemented:
                    return write
        return None

    def _take(self) -> None:
        """Move the ring's writes to `waiting`. `_lock` is held."""
        u32, u64 = self._u32, self._u64
        if u32 is None or u64 is None:
            return
        first, last = u32[0], u32[1]
        while first != last:
            at = _HEAD + first * _ENTRY
            address, size = u64[at >> 3], u32[at + _LENGTH >> 2]
            value = u64[at + _DATA >> 3] & (1 << 8 * size) - 1
            self.waiting.append(_Write(self._claim_at(address, size), address, size, value))
            first = (first + 1) % CAPACITY
        u32[0] = last

    def _claim_at(self, address: int, size: int) -> Claim | None:
        """Whose a write in the ring was; None where its size is not one of theirs."""
        for (base, length), claim in self.zones.items():
            if base <= address < base + length:
                return claim if size in claim.region.sizes else None
        return None

    def _main(self) -> None:
        u32 = self._u32
        assert u32 is not None
        while not self._closing.wait(LATEST):
            if u32[0] != u32[1]:
                self.flush()


def _gaps(region: Region) -> Iterator[tuple[int, int]]:
    """The offsets between a region's doorbells, whose writes must not go into the ring."""
    at = 0
    for low, high in sorted((bell.offset, bell.offset + bell.size) for bell in region.doorbells):
        if at < low:
            yield at, low
        at = max(at, high)
    if at < region.length:
        yield at, region.length


def _elements(write: _Write) -> Iterator[_Write]:
    """A write of a size that the bus has not: elements of the bus's sizes, largest first."""
    part = 0
    while part < write.size:
        unit = min(8, 1 << (write.size - part).bit_length() - 1)
        yield _Write(None, write.address + part, unit, write.value >> 8 * part & (1 << 8 * unit) - 1)
        part += unit
