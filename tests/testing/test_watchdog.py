"""Devices that do not come to an end: the time limit names device, access and place, and the machine goes on."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest

from iobus.bus import Device, DeviceError
from iobus.clock import SteppedClock, TimerError
from iobus.machine import Machine
from iobus.testing import Bench, DeviceTimeoutError
from iobus.testing.bench import bench
from iobus.testing.watchdog import StuckDeviceError

BASE = 0xD0000000


class Endless(Device):
    """Offset 0 answers; the others do not, each in its own way."""

    length = 0x100

    def read(self, offset: int, size: int) -> int:
        if offset == 8:
            while True:
                pass
        if offset == 16:
            time.sleep(1000)
        if offset == 24:
            threading.Lock().acquire()
            threading.Event().wait()
        if offset == 32:
            while True:
                with contextlib.suppress(Exception):  # as devices written in a hurry have it
                    time.sleep(1000)
        return 5

    def write(self, offset: int, size: int, value: int) -> Any:
        while True:
            pass


@pytest.fixture
def endless(bus: Bench) -> Bench:
    bus.time_limit = 0.1
    bus.attach(Endless(), BASE)
    return bus


@pytest.mark.parametrize("offset", [8, 16, 24])
def test_a_device_that_never_answers(endless: Bench, offset: int) -> None:
    """A loop, a sleep and a wait are ended: the error names the device, the access, and the line it was at."""
    with pytest.raises(DeviceError) as caught:
        endless.read(BASE + offset, 4)
    text = str(caught.value)
    assert text.startswith(
        f"Endless at region 'Endless': 4-byte read at address {BASE + offset:#x} (offset {offset:#x})"
    )
    assert "DeviceTimeoutError: no answer after 0.1 s, at " in text
    assert isinstance(caught.value.__cause__, DeviceTimeoutError)
    with pytest.raises(DeviceError, match=r"4-byte write of 0x7 .*test_watchdog.py:.* in write"):
        endless.write(BASE, 4, 7)
    assert endless.read(BASE, 4) == 5


def test_a_device_that_swallows_the_exception(endless: Bench) -> None:
    """The second one is not to be caught with `except Exception`; the machine goes on all the same."""
    with pytest.raises(StuckDeviceError, match=r"no answer after 0.1 s"):
        endless.read(BASE + 32, 4)
    assert endless.read(BASE, 4) == 5


def test_a_timer_that_never_ends(bus: Bench) -> None:
    """A callback's time limit holds for a step of time: the error names the timer."""

    def forever() -> None:
        while True:
            pass

    bus.time_limit = 0.1
    bus.clock.timer(forever, "the watchdog's own").arm(50)
    with pytest.raises(TimerError, match='timer "the watchdog\'s own" due at 50 ns: DeviceTimeoutError: no answer'):
        bus.advance(100)
    bus.advance(100)
    assert bus.clock.now() == 150  # 50 ns, at which it stopped, and 100


def test_many_accesses_are_not_one_long_one(bus: Bench) -> None:
    """The limit is for each access: a test that makes accesses for longer than that is left alone."""
    bus.time_limit = 0.1
    bus.attach(Endless(), BASE)
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        assert bus.read(BASE, 4) == 5


def test_in_another_thread() -> None:
    """A device that loops on another thread, as an engine's, is ended there."""
    errors: list[BaseException] = []
    with Machine(clock=SteppedClock()) as machine, bench(machine) as made:
        made.time_limit = 0.1
        made.attach(Endless(), BASE)

        def access() -> None:
            try:
                made.read(BASE + 8, 4)
            except BaseException as exc:
                errors.append(exc)

        thread = threading.Thread(target=access)
        thread.start()
        thread.join(20)
        assert made.read(BASE, 4) == 5
    assert isinstance(errors[0], DeviceError) and "no answer after 0.1 s" in str(errors[0])
