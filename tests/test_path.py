"""The access path's own memory of answers, and its observer."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from bus_devices import Decliner, Failing, Recorder

from iobus.bus import DeviceError
from iobus.clock import SteppedClock
from iobus.exits import MmioExit
from iobus.machine import Machine
from iobus.path import Access, AccessPath


def make() -> tuple[Machine, AccessPath]:
    machine = Machine(clock=SteppedClock())
    return machine, machine.vcpus[0].mmio_path


def seen_by(path: AccessPath) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    path.observe(lambda access: seen.append(access[:5]))
    return seen


def test_an_access_made_before_is_remembered_until_either_bus_changes() -> None:
    """An engine finds the answer of an earlier access in `reads` and `writes`, and none after a registration."""
    machine, path = make()
    device = Recorder()
    region = machine.mmio.attach(device, 0x1000, 16)
    path.read(0x1004, 4)
    path.write(0x1008, 2, 7)
    assert path.reads[4][0x1004][:2] == (device.read, 4)
    assert path.writes[2][0x1008][:2] == (device.write, 8)
    for change in (
        lambda: machine.vcpus[0].mmio.attach(Recorder(), 0x9000, 4),
        lambda: region.move(0x2000),
        lambda: region.move(0x1000),
        lambda: region.enable(False),
    ):
        path.read(0x1004, 4)
        change()
        assert not path.reads[4]


def test_an_eclipsed_device_is_not_remembered_for_the_vcpu_whose_device_eclipses_it() -> None:
    """Also where another vCPU has made the machine's bus remember it."""
    machine = Machine(cpus=2, clock=SteppedClock())
    machine.mmio.attach(Recorder(0x11), 0x1000, 16)
    machine.vcpus[0].mmio.attach(Recorder(0x22), 0x1000, 16)
    first, second = (vcpu.mmio_path for vcpu in machine.vcpus)
    assert [path.read(0x1000, 4) for path in (second, second, first, first, first, second)] == [
        0x11, 0x11, 0x22, 0x22, 0x22, 0x11,
    ]  # fmt: skip


def test_a_device_that_answered_may_decline_later() -> None:
    """The access then goes on to the next claimant, as if the device had declined at first."""
    machine, path = make()
    moody, behind = Recorder(), Recorder(0x99)
    machine.mmio.attach(moody, 0x1000, 16, priority=1)
    machine.mmio.attach(behind, 0x1000, 16)
    path.write(0x1000, 4, 1)
    assert path.read(0x1000, 4) == path.read(0x1000, 4) == 0x42
    moody.answer = NotImplemented
    assert path.read(0x1000, 4) == path.read(0x1000, 4) == 0x99
    moody.answer = 0x43
    assert path.read(0x1000, 4) == 0x43


@pytest.mark.parametrize("answer", [-1, 1 << 32, None, "1", 1.0])
def test_a_bad_answer_of_a_device_that_answered_before_is_an_error(answer: object) -> None:
    """What it returns is looked at each time, remembered or not; afterwards all goes on."""
    machine, path = make()
    device = Recorder()
    machine.mmio.attach(device, 0x1000, 16)
    path.read(0x1000, 4)
    device.answer = answer
    with pytest.raises(DeviceError, match="read returned"):
        path.read(0x1000, 4)
    assert not machine.lock.held()
    device.answer = True
    assert path.read(0x1000, 4) == 1


def test_nobodys_address_is_asked_of_the_caller_each_time() -> None:
    """An access that no device claims comes to the caller however often it was made."""
    _, path = make()
    assert [path.read(0x1000, 4) for _ in range(3)] == [0xFFFFFFFF] * 3
    assert not path.reads[4]


def test_an_observer_sees_each_completed_access() -> None:
    """Claimed or not, made before or not, with its value; and none once it is told to ignore them, unlike another."""
    machine, path = make()
    device = Recorder()
    machine.mmio.attach(Decliner(), 0, 16)
    region = machine.mmio.attach(device, 0, 16)
    path.read(0, 4)
    seen: list[tuple[Any, ...]] = []

    def observe(access: Access) -> None:
        seen.append(access[:5])

    path.observe(observe)
    others = seen_by(path)
    for _ in range(2):
        path.read(0, 4)
        path.write(4, 2, 9)
        path.read(0x100, 4)
        path.write(0x100, 1, 3)
    assert (
        seen
        == [
            (region, 0, 4, False, 0x42),
            (region, 4, 2, True, 9),
            (None, 0x100, 4, False, 0xFFFFFFFF),
            (None, 0x100, 1, True, 3),
        ]
        * 2
    )
    path.ignore(observe)
    path.read(0, 4)
    assert (len(seen), len(others)) == (8, 9)


def test_an_observer_is_called_after_the_device_with_the_lock_held() -> None:
    """What it sees of the device is the state after the access, and nobody else can touch it meanwhile."""
    machine, path = make()
    device = Recorder()
    machine.mmio.attach(device, 0, 16)
    calls: list[tuple[int, bool]] = []

    def observe(access: Access) -> None:
        calls.append((len(device.calls), machine.lock.held()))
        assert access.taken >= 0

    path.observe(observe)
    path.read(0, 4)
    path.read(0x100, 4)
    assert calls == [(1, True), (1, True)]


def test_an_observer_does_not_see_failed_accesses() -> None:
    """An access that ended in `DeviceError` was not completed."""
    machine, path = make()
    machine.mmio.attach(Failing(), 0, 4)
    seen = seen_by(path)
    for access in (lambda: path.read(0, 4), lambda: path.write(0, 4, 0)):
        with pytest.raises(DeviceError):
            access()
    assert seen == []


def test_an_observer_sees_what_load_and_store_ask_of_devices() -> None:
    """An emulated access that a device claims is seen; one that exits is its caller's and is not."""
    machine, path = make()
    region = machine.mmio.attach(Recorder(), 0, 16)
    seen = seen_by(path)
    machine.vcpus[0].load(0, 4)
    assert isinstance(machine.vcpus[0].load(0x100, 4), MmioExit)
    assert seen == [(region, 0, 4, False, 0x42)]


def test_what_is_under_way_is_told_while_it_is() -> None:
    """Observed, a path says which device is being asked what, by which thread, decliners too; afterwards nothing."""
    machine = Machine()
    path = machine.vcpus[0].mmio_path
    seen: list[Any] = []

    class Device:
        def read(self, offset: int, size: int) -> int:
            seen.append(path.under_way)
            return 5

        def write(self, offset: int, size: int, value: int) -> Any:
            seen.append(path.under_way)
            if offset:
                raise ValueError("no such register")
            return NotImplemented

    region = machine.mmio.attach(Device(), 0x1000, 8)
    path.read(0x1004, 4)
    path.observe(lambda access: None)
    path.read(0x1004, 4)
    path.write(0x1000, 2, 9)
    with pytest.raises(DeviceError):
        path.write(0x1004, 4, 9)
    assert path.under_way is None and seen[0] is None
    me = threading.get_ident()
    assert [item[:5] for item in seen[1:]] == [
        (region, 0x1004, 4, None, me), (region, 0x1000, 2, 9, me), (region, 0x1004, 4, 9, me)
    ]  # fmt: skip
