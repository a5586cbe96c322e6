"""The bus while several threads change and use it: no access is lost, none goes where it should not.

A short switch interval makes the interpreter change threads as often as it can; the last tests
interleave by hand what a thread switch would.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest

from iobus.bus import Bus, Device, Region
from iobus.claims import Claim


@contextmanager
def hasty_threads(work: Callable[[], None]) -> Iterator[threading.Thread]:
    """Run `work` in a second thread beside the body, with a thread switch as often as can be had."""
    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as exc:
            failure.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=guarded)
    try:
        thread.start()
        yield thread
    finally:
        thread.join()
        sys.setswitchinterval(interval)
    assert not failure, failure


class Echo(Device):
    """Answers with a number of its own and the offset it was asked at."""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, offset: int, size: int) -> int:
        return self.number << 16 | offset

    def write(self, offset: int, size: int, value: int) -> None:
        if value != self.number << 16 | offset:
            raise AssertionError(f"{value:#x} came to device {self.number} at {offset}")


COUNT = 100_000


def test_attaching_while_another_thread_dispatches_loses_no_access() -> None:
    """10^5 devices attached beside a dispatching thread: what starts after `attach` returned finds the device."""
    bus = Bus()
    bus.attach(Echo(COUNT), 1 << 40, 0x10)
    attached = -1

    def attach() -> None:
        nonlocal attached
        for number in range(COUNT):
            bus.attach(Echo(number), number * 0x10, 0x10)
            attached = number

    dispatched = 0
    with hasty_threads(attach) as thread:
        while thread.is_alive():
            number = attached
            if number >= 0:
                assert bus.read(number * 0x10 + 4, 8) == number << 16 | 4
                assert bus.write(number // 2 * 0x10 + 8, 8, number // 2 << 16 | 8) is None
                # The next one is just being attached: it may answer or not, now, but must for good afterwards.
                assert bus.read(number * 0x10 + 0x14, 8) in (NotImplemented, number + 1 << 16 | 4)
            assert bus.read((1 << 40) + 8, 8) == COUNT << 16 | 8
            dispatched += 1
    assert attached == COUNT - 1 and dispatched > 1000
    assert all(bus.read(number * 0x10 + 4, 8) == number << 16 | 4 for number in range(COUNT))


def test_dispatching_while_another_thread_attaches_and_detaches() -> None:
    """10^5 accesses beside a thread that lays a region over a device and takes it off: each goes to one of the two."""
    bus = Bus()
    bus.attach(Echo(1), 0, 0x100)
    below, above = 1 << 16 | 0x50, 2 << 16 | 0x10
    phase = 0  # odd while the registrations stand still: 1 with the region, 3 without it, modulo 4
    stop = False

    def churn() -> None:
        nonlocal phase
        while not stop:
            region = bus.attach(Echo(2), 0x40, 0x40, priority=1)
            phase += 1
            sleep(0)
            phase += 1
            region.detach()
            phase += 1
            sleep(0)
            phase += 1

    still = {below: 0, above: 0}
    with hasty_threads(churn):
        try:
            for number in range(50 * COUNT):  # a busy host needs more to show both standing still
                if number >= COUNT and min(still.values()) > 0:
                    break
                before = phase
                value = bus.read(0x50, 4)
                assert value in (below, above), hex(value)
                if before == phase and before % 2:
                    assert value == (above if before % 4 == 1 else below), "what had returned was not seen"
                    still[value] += 1
        finally:
            stop = True
    assert min(still.values()) > 0, still


def test_dispatching_while_another_thread_moves_a_region() -> None:
    """10^5 accesses beside a thread that moves a region: the offset always fits a base, and none is lost."""
    bus = Bus()
    bus.attach(Echo(1), 0, 0x1000, priority=-1)
    region = bus.attach(Echo(2), 0x100, 0x20)
    bases = (0x110, 0x800, 0x100)
    still: int | None = 0x100  # the base while the region stands still
    moves = 0
    stop = False

    def churn() -> None:
        nonlocal still, moves
        while not stop:
            still = None
            region.move(bases[moves % 3])
            moves += 1
            still = region.base
            sleep(0)

    certain = 0
    with hasty_threads(churn):
        try:
            for index in range(50 * COUNT):
                if index >= COUNT and certain > 0 and moves > 100:
                    break
                address = (0x104, 0x118, 0x808)[index % 3]
                base, before = still, moves
                value = bus.read(address, 4)
                inside = [base for base in bases if base <= address and address + 4 <= base + 0x20]
                possible = {1 << 16 | address, *(2 << 16 | address - base for base in inside)}
                assert value in possible, (hex(address), hex(value))
                if base is not None and base == still and before == moves:
                    assert value == (2 << 16 | address - base if base in inside else 1 << 16 | address), hex(base)
                    certain += value >> 16 == 2
        finally:
            stop = True
    assert certain > 0 and moves > 100, (certain, moves)


class Hesitant(Bus):
    """A bus whose writers let another thread run between the steps of a change."""

    def _file(self, claim: Claim) -> None:
        sleep(0)
        super()._file(claim)
        sleep(0)

    def _unfile(self, claim: Claim) -> None:
        sleep(0)
        super()._unfile(claim)
        sleep(0)


def test_many_threads_change_one_bus() -> None:
    """Registrations at the same addresses from several threads are all there afterwards, or gone if they left."""
    bus = Hesitant()

    def churn(start: int) -> None:
        for number in range(start, start + 100):
            region = bus.attach(Echo(number), number % 4 * 0x10, 0x10)
            region.move(0x1000 + number % 4 * 0x10)
            region.enable(False)
            region.enable()
            if number % 2:
                region.detach()

    with hasty_threads(lambda: churn(0)), hasty_threads(lambda: churn(100)):
        churn(200)
    regions = bus.regions
    assert sorted(region.device.number for region in regions) == list(range(0, 300, 2))
    for region in regions:  # in their order each is first once, until it leaves
        first = min((other for other in bus.regions if other.base == region.base), key=regions.index)
        assert bus.find(region.base, 4) is first is region
        assert bus.find(region.base - 0x1000, 4) is None
        region.detach()
    assert all(bus.find(0x1000 + slot * 0x10) is None for slot in range(4))


class Interleaved(Bus):
    """Calls `between` at every step of a change, and `meanwhile`, once, between a search and the use of its result.

    An access takes no lock, so that a whole access can happen at any of these points.
    """

    between: Callable[[], object] = staticmethod(lambda: None)
    meanwhile: Callable[[], object] | None = None

    def _file(self, claim: Claim) -> None:
        self.between()
        super()._file(claim)
        self.between()

    def _unfile(self, claim: Claim) -> None:
        self.between()
        super()._unfile(claim)
        self.between()

    def _forget(self) -> None:
        self.between()
        super()._forget()
        self.between()

    def _next(self, *access: Any) -> Claim | None:
        found = super()._next(*access)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return found


def changes(bus: Bus, region: Region) -> dict[str, tuple[Callable[[], object], dict[int, int]]]:
    """Each kind of change to a region at 0x100, and what addresses read afterwards, by number of the device."""
    over = Echo(3)
    return {
        "attach": (lambda: bus.attach(over, 0x100, 0x20, priority=1), {0x104: 3, 0x114: 3, 0x808: 1}),
        "in_range": (lambda: bus.attach(Claims(4), priority=1), {0x104: 4, 0x114: 4, 0x808: 1}),
        "detach": (region.detach, {0x104: 1, 0x114: 1, 0x808: 1}),
        "disable": (lambda: region.enable(False), {0x104: 1, 0x114: 1, 0x808: 1}),
        "move far": (lambda: region.move(0x800), {0x104: 1, 0x114: 1, 0x808: 2}),
        "move near": (lambda: region.move(0x110), {0x104: 1, 0x114: 2, 0x808: 1}),
    }


class Claims(Echo):
    """Claims below 0x200 by the callback."""

    def in_range(self, address: int, size: int) -> bool:
        return address < 0x200


BEFORE = {0x104: 2, 0x114: 2, 0x808: 1}
KINDS = ("attach", "in_range", "detach", "disable", "move far", "move near")


def populated() -> tuple[Interleaved, Region]:
    bus = Interleaved()
    bus.attach(Echo(1), 0, 0x1000, priority=-1)
    return bus, bus.attach(Echo(2), 0x100, 0x20)


@pytest.mark.parametrize("kind", KINDS)
def test_an_access_at_any_step_of_a_change_sees_it_whole_or_not_at_all(kind: str) -> None:
    """At each step every address answers as before or as after the change, and after it as it should for good."""
    bus, region = populated()
    change, after = changes(bus, region)[kind]
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        assert bus._change.locked(), "another writer could come in between"
        for _ in range(2):  # the second read may come from what the first one made the bus remember; `find` never does
            for address in BEFORE:
                found = bus.find(address, 4)
                numbers = {bus.read(address, 4) >> 16, found.device.number if found else 0}
                assert numbers <= {BEFORE[address], after[address]}, (kind, hex(address), looks)

    bus.between = look
    change()
    assert looks >= 4
    del bus.between
    for _ in range(2):
        assert {address: bus.read(address, 4) >> 16 for address in after} == after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", BEFORE)
@pytest.mark.parametrize("write", [False, True])
def test_a_change_in_the_middle_of_an_access_is_not_lost(kind: str, address: int, write: bool) -> None:
    """The access under way goes where its search found; what it made the bus remember does not outlive the change."""
    bus, region = populated()
    change, after = changes(bus, region)[kind]
    bus.meanwhile = change
    if write:
        base = {1: 0, 2: 0x100}[BEFORE[address]]
        assert bus.write(address, 4, BEFORE[address] << 16 | address - base) is None
    else:
        assert bus.read(address, 4) >> 16 == BEFORE[address]
    assert bus.meanwhile is None, "the change was made during the access"
    for _ in range(2):
        assert {address: bus.read(address, 4) >> 16 for address in after} == after


def test_attaching_in_the_middle_of_an_access_that_finds_nobody() -> None:
    """That nobody was found is not remembered when a device comes meanwhile."""
    bus = Interleaved()
    bus.meanwhile = lambda: bus.attach(Echo(1), 0, 16)
    assert bus.read(0, 4) is NotImplemented
    assert bus.read(0, 4) == 1 << 16
