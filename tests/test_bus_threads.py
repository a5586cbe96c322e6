"""The bus while several threads change and use it: no access is lost, none goes where it should not.

A short switch interval makes the interpreter change threads every few bytecodes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest

from iobus.bus import Bus, Claim, Device


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
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=guarded)
    try:
        thread.start()
        yield thread
    finally:
        thread.join()
        sys.setswitchinterval(interval)
    assert not failure, failure


class Hesitant(Bus):
    """A bus that lets another thread run between the steps of a change and of a search, in their own order."""

    def _file(self, claim: Claim) -> None:
        sleep(0)
        super()._file(claim)
        sleep(0)

    def _unfile(self, claim: Claim) -> None:
        sleep(0)
        super()._unfile(claim)
        sleep(0)

    def _next(self, *access: Any) -> Claim | None:
        found = super()._next(*access)
        sleep(0)
        return found


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


@pytest.mark.parametrize(("make", "count"), [(Bus, COUNT), (Hesitant, 10_000)])
def test_dispatching_while_another_thread_attaches_and_detaches(make: type[Bus], count: int) -> None:
    """Accesses beside a thread that lays a region over a device and takes it off: each goes to one of the two."""
    bus = make()
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
            for _ in range(count):
                before = phase
                value = bus.read(0x50, 4)
                assert value in (below, above), hex(value)
                if before == phase and before % 2:
                    assert value == (above if before % 4 == 1 else below), "what had returned was not seen"
                    still[value] += 1
        finally:
            stop = True
    assert min(still.values()) > 0, still


@pytest.mark.parametrize(("make", "count"), [(Bus, COUNT), (Hesitant, 10_000)])
def test_dispatching_while_another_thread_moves_a_region(make: type[Bus], count: int) -> None:
    """Accesses beside a thread that moves a region: the offset always fits a base, and none is lost."""
    bus = make()
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
            for index in range(count):
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
    assert certain > 0 and moves > 10, (certain, moves)


def test_a_device_attached_to_a_hesitant_bus_is_found() -> None:
    """What is being attached is looked for at the same moment: once `attach` has returned it is found."""
    bus, attached, stop = Hesitant(), -1, False

    def look() -> None:
        while not stop:
            number = attached + 1
            assert bus.read(number * 0x10, 8) in (NotImplemented, number << 16)

    with hasty_threads(look):
        try:
            for number in range(1000):
                bus.attach(Echo(number), number * 0x10, 0x10)
                attached = number
                assert bus.read(number * 0x10, 8) == number << 16
        finally:
            stop = True


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
