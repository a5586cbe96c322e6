"""The access path of a vCPU: its bus, the machine's, the one result of unclaimed accesses, the lock, errors."""

from __future__ import annotations

from typing import Any

import pytest
from bus_devices import Decliner, Recorder

from iobus.bus import Device, DeviceError
from iobus.clock import SteppedClock
from iobus.machine import Machine
from iobus.vcpu import VCPU


def flat() -> tuple[Machine, VCPU]:
    """A machine with paging off: addresses below 4 GiB are physical."""
    machine = Machine(clock=SteppedClock())
    machine.memory.add(0, 0x10000)
    return machine, machine.vcpus[0]


# The buses.


def test_a_vcpus_device_eclipses_the_machines_for_that_vcpu_only() -> None:
    """At one address, vCPU 0 reaches its own device and vCPU 1 the machine's: memory and ports, reads and writes."""
    machine = Machine(cpus=2)
    first, second = machine.vcpus
    shared, own = Recorder(0x11), Recorder(0x22)
    machine.mmio.attach(shared, 0xFEE00000, 0x1000)
    machine.pio.attach(shared, 0x60, 1)
    first.mmio.attach(own, 0xFEE00000, 0x1000)
    first.pio.attach(own, 0x60, 1)
    assert (first.mmio_path.read(0xFEE00020, 4), second.mmio_path.read(0xFEE00020, 4)) == (0x22, 0x11)
    assert (first.pio_path.read(0x60, 1), second.pio_path.read(0x60, 1)) == (0x22, 0x11)
    first.mmio_path.write(0xFEE000B0, 4, 1)
    second.mmio_path.write(0xFEE000B0, 4, 2)
    first.pio_path.write(0x60, 1, 3)
    second.pio_path.write(0x60, 1, 4)
    assert own.calls == [(0x20, 4), (0, 1), (0xB0, 4, 1), (0, 1, 3)]
    assert shared.calls == [(0x20, 4), (0, 1), (0xB0, 4, 2), (0, 1, 4)]
    assert (first.load(0xFEE00020, 4), second.load(0xFEE00020, 4)) == (0x22, 0x11)


def test_each_vcpu_may_have_its_own_device_at_one_address() -> None:
    """Two LAPICs at one address: each vCPU reaches its own, and one that moves away uncovers the machine's."""
    machine = Machine(cpus=2)
    machine.mmio.attach(Recorder(9), 0xFEE00000, 0x1000)
    regions = [vcpu.mmio.attach(Recorder(vcpu.index), 0xFEE00000, 0x1000) for vcpu in machine.vcpus]
    assert [vcpu.mmio_path.read(0xFEE00020, 4) for vcpu in machine.vcpus] == [0, 1]
    regions[0].move(0xFED00000)
    assert [vcpu.mmio_path.read(0xFEE00020, 4) for vcpu in machine.vcpus] == [9, 1]
    assert [vcpu.mmio_path.read(0xFED00020, 4) for vcpu in machine.vcpus] == [0, 0xFFFFFFFF]
    regions[1].enable(False)
    assert [vcpu.mmio_path.read(0xFEE00020, 4) for vcpu in machine.vcpus] == [9, 9]


def test_what_a_vcpus_device_declines_the_machines_is_asked() -> None:
    """Declining goes on from the vCPU's bus to the machine's, and from there out."""
    machine = Machine()
    vcpu, own, shared = machine.vcpus[0], Decliner(), Decliner(writes=False)
    vcpu.mmio.attach(own, 0x1000, 16)
    machine.mmio.attach(shared, 0x1000, 16)
    vcpu.mmio_path.write(0x1004, 4, 7)
    assert vcpu.mmio_path.read(0x1004, 4) == 0xFFFFFFFF
    assert own.calls == shared.calls == [(4, 4, 7), (4, 4)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_unclaimed_accesses_have_one_defined_result(size: int) -> None:
    """Nobody there: a read gives all ones of its size, a write is dropped."""
    vcpu = Machine().vcpus[0]
    assert vcpu.mmio_path.read(0xD000_0000, size) == 256**size - 1
    vcpu.mmio_path.write(0xD000_0000, size, 0)
    if size < 8:
        assert vcpu.pio_path.read(0x300, size) == 256**size - 1
        vcpu.pio_path.write(0x300, size, 0)


def test_the_machine_lock_is_held_while_a_device_is_asked() -> None:
    """Every way into a device holds `machine.lock`: another thread that takes it waits."""
    machine, vcpu = flat()
    held: list[bool] = []

    class Checks(Device):
        def look(self) -> int:
            held.append(machine.lock.held())
            return 0

        def read(self, offset: int, size: int) -> int:
            return self.look()

        def write(self, offset: int, size: int, value: int) -> None:
            self.look()

    machine.mmio.attach(Checks(), 0x100000, 16)
    machine.pio.attach(Checks(), 0, 16)
    vcpu.mmio.attach(Checks(), 0x200000, 16)
    for address in (0x100000, 0x200000):
        vcpu.mmio_path.read(address, 4)
        vcpu.mmio_path.write(address, 4, 0)
        vcpu.load(address, 4)
        vcpu.store(address, 4, 0)
    vcpu.pio_path.read(0, 1)
    vcpu.pio_path.write(0, 1, 0)
    assert held == [True] * 10
    assert not machine.lock.held()


def test_a_device_error_leaves_the_machine_whole() -> None:
    """After `DeviceError` no lock is held, the device can be inspected, and the vCPU's next access works."""

    class Breaks(Recorder):
        def write(self, offset: int, size: int, value: int) -> Any:
            raise RuntimeError("boom")

    machine, vcpu = flat()
    device = Breaks(5)
    machine.mmio.attach(device, 0x100000, 16)
    for access in (lambda: vcpu.mmio_path.write(0x100004, 4, 7), lambda: vcpu.store(0x100004, 4, 7)):
        with pytest.raises(
            DeviceError, match=r"4-byte write of 0x7 at address 0x100004 .* RuntimeError: boom"
        ) as caught:
            access()
        assert caught.value.device is device
        assert not machine.lock.held()
        assert vcpu.mmio_path.read(0x100000, 4) == vcpu.load(0x100000, 4) == 5
