"""What a guest sees of the buses is the same without a CPU, on Unicorn and on KVM (docs/access-path.md)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from accesses import Accesses, Op
from bus_devices import Bytes, Decliner, Failing, Recorder
from rig import DATA, MMIO, RAM

from iobus.bus import Device, DeviceError, Region
from iobus.exits import MmioExit, PioExit

PORT = 0x1230


@pytest.mark.parametrize("size", [1, 2, 4])
def test_reads_and_writes_arrive_with_address_size_and_value(guest: Accesses, size: int) -> None:
    """A device is given the offset from its base, the size and the value; what it answers is what the guest reads."""
    device = Recorder(0x89ABCDEF >> 32 - 8 * size)
    guest.machine.mmio.attach(device, MMIO, 0x100)
    guest.store(MMIO + 0x10, size, 0x11223344 & (1 << 8 * size) - 1)
    assert guest.load(MMIO + 0x18, size) == device.answer
    assert device.calls == [(0x10, size, 0x11223344 & (1 << 8 * size) - 1), (0x18, size)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ports_take_the_same_path(guest: Accesses, size: int) -> None:
    """IN and OUT of each size reach the device on the bus of ports, and exits say what nobody claims."""
    device = Recorder(0x89ABCDEF >> 32 - 8 * size)
    guest.machine.pio.attach(device, PORT, 8)
    value = 0x11223344 & (1 << 8 * size) - 1
    read = guest.make([Op(PORT + 4, size, value, True), Op(PORT, size, port=True), Op(PORT + 8, size, value, True)])
    assert read == [device.answer]
    assert device.calls == [(4, size, value), (0, size)]
    assert guest.exits == [PioExit(PORT + 8, size, True, value)]


def test_eight_bytes_come_whole_or_as_halves(guest: Accesses) -> None:
    """A 64-bit access is one of 8 bytes; on Unicorn two of 4, the lower address first (docs/engines.md)."""
    device = Bytes()
    guest.machine.mmio.attach(device, MMIO, 16)
    guest.store(MMIO, 8, 0x1122334455667788)
    assert guest.load(MMIO, 8) == 0x1122334455667788
    if guest.kind == "unicorn":
        assert device.calls == [("w", 0, 4, 0x55667788), ("w", 4, 4, 0x11223344), ("r", 0, 4), ("r", 4, 4)]
    else:
        assert device.calls == [("w", 0, 8, 0x1122334455667788), ("r", 0, 8)]


def test_a_vcpus_device_eclipses_the_machines_for_it_alone(guests: Callable[[int], Accesses]) -> None:
    """The seed's rule: the vCPU's bus, then the machine's; each vCPU has its own device at one address."""
    guest = guests(2)
    guest.machine.mmio.attach(Recorder(0x33), MMIO, 0x10)
    for vcpu, answer in zip(guest.machine.vcpus, (0x11, 0x22), strict=True):
        vcpu.mmio.attach(Recorder(answer), MMIO, 8)
    assert [guest.load(MMIO, 1, cpu=cpu) for cpu in (0, 1)] == [0x11, 0x22]
    assert [guest.load(MMIO + 8, 1, cpu=cpu) for cpu in (0, 1)] == [0x33, 0x33]
    assert guest.exits == []


def test_what_is_declined_goes_to_the_next_region_the_next_bus_and_out(guest: Accesses) -> None:
    """NotImplemented: the next in order is asked, each once, and with none left the caller answers."""
    asked = [Decliner(), Decliner(), Decliner()]
    guest.vcpu.mmio.attach(asked[0], MMIO, 8)
    guest.machine.mmio.attach(asked[2], MMIO, 8)
    guest.machine.mmio.attach(asked[1], MMIO, 8, priority=1)
    assert guest.load(MMIO, 4, answer=0x1234) == 0x1234
    guest.store(MMIO, 4, 0x5678)
    assert [device.calls for device in asked] == [[(0, 4), (0, 4, 0x5678)]] * 3
    assert guest.exits == [MmioExit(MMIO, 4, False, 0x1234), MmioExit(MMIO, 4, True, 0x5678)]


def test_an_access_that_sticks_out_is_not_claimed(guest: Accesses) -> None:
    """The whole access must lie inside the region; the exit has all of it."""
    device = Recorder()
    guest.machine.mmio.attach(device, MMIO, 6)
    guest.store(MMIO + 4, 4, 0xCAFE)
    assert (device.calls, guest.exits) == ([], [MmioExit(MMIO + 4, 4, True, 0xCAFE)])


def test_the_machines_answer_is_all_ones_and_counted(guest: Accesses) -> None:
    """Without a caller to answer a read gives ones, on every engine, and both are counted."""
    if guest.kind == "none":
        pytest.skip("without a CPU there is always a caller")
    guest.memory.write(0x10000, Op(MMIO, 4).code() + Op(MMIO + 4, 2, 7).code() + b"\xf4")
    guest.finish()
    assert guest.word(size=4) == 0xFFFFFFFF
    assert {(key.address, key.is_write): count for key, count in guest.machine.unclaimed.items()} == {
        (MMIO, False): 1,
        (MMIO + 4, True): 1,
    }


@pytest.mark.parametrize("endian", ["little", "big"])
def test_the_bus_splits_and_merges_and_swaps(guest: Accesses, endian: str) -> None:
    """A device of 2-byte registers under accesses of 4 and 1 bytes, in either order of bytes."""
    device = Bytes(bytes(range(0x10, 0x20)), endian)
    guest.machine.mmio.attach(device, MMIO, 16, implements=(2,), endian=endian)
    assert guest.load(MMIO + 4, 4) == 0x17161514
    assert guest.load(MMIO + 3, 1) == 0x13
    guest.make([Op(MMIO + 8, 4, 0xA4A3A2A1), Op(MMIO + 1, 1, 0xEE)])
    assert device.data.hex() == "10ee121314151617a1a2a3a41c1d1e1f"
    assert {call[2] for call in device.calls} == {2}


class Mover(Device):
    """A register of which each write says where the region is from then on."""

    region: Region

    def __init__(self) -> None:
        self.writes: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return 0x77

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append(value)
        self.region.move(value)


def test_a_region_moves_inside_its_own_write(guest: Accesses) -> None:
    """The access under way is done; the next finds the region at its new place and nobody at the old one."""
    device = Mover()
    device.region = guest.machine.mmio.attach(device, MMIO, 8)
    ops = [
        Op(MMIO, 4, MMIO + 0x1000),
        Op(MMIO + 0x1000, 4),
        Op(MMIO, 4),
        Op(MMIO + 0x1000, 4, MMIO + 4),
        Op(MMIO + 4, 4),
    ]
    assert guest.make(ops, answer=5) == [0x77, 5, 0x77]
    assert device.writes == [MMIO + 0x1000, MMIO + 4]
    assert guest.exits == [MmioExit(MMIO, 4, False, 5)]


def test_in_range_is_asked_at_each_access(guest: Accesses) -> None:
    """The seed's callback: the device says what it claims, and its offset is the address."""

    class Holes(Recorder):
        def in_range(self, address: int, size: int) -> bool:
            return address & 8 == 0 and address >> 12 == MMIO >> 12

    device = Holes(0x99)
    guest.machine.mmio.attach(device)
    assert guest.make([Op(MMIO, 1), Op(MMIO + 8, 1), Op(MMIO + 0x10, 1)], answer=1) == [0x99, 1, 0x99]
    assert device.calls == [(MMIO, 1), (MMIO + 0x10, 1)]


def test_ram_lies_over_the_machines_devices(guest: Accesses) -> None:
    """Where both are at one place a guest has RAM; where RAM ends, it is the bus again."""
    device = Recorder(0x11)
    guest.machine.mmio.attach(device, DATA, 0x1000)
    guest.store(DATA, 4, 0xAABBCCDD)
    assert guest.load(DATA, 4) == 0xAABBCCDD and device.calls == []
    assert guest.load(RAM, 4, answer=3) == 3


def test_a_vcpus_own_device_eclipses_ram(guest: Accesses) -> None:
    """Its registers are the device's, the rest of the page is RAM, and so is all of it when the device has left."""
    if guest.kind == "unicorn":
        pytest.skip("the unicorn engine runs from RAM wherever there is RAM")
    guest.store(DATA, 4, 0xAABBCCDD)
    region = guest.vcpu.mmio.attach(Recorder(0x22), DATA, 4)
    assert guest.make([Op(DATA, 4), Op(DATA + 4, 4)]) == [0x22, 0]
    region.detach()
    assert guest.load(DATA, 4) == 0xAABBCCDD


def test_a_devices_exception_stops_the_guest_and_it_goes_on(guest: Accesses) -> None:
    """DeviceError names the access; afterwards the machine is whole."""
    region = guest.machine.mmio.attach(Failing(), MMIO, 8, name="bad")
    with pytest.raises(DeviceError, match=r"region 'bad': 4-byte write of 0x7 at address 0x10000004") as caught:
        guest.store(MMIO + 4, 4, 7)
    assert isinstance(caught.value.__cause__, KeyError)
    region.detach()
    if guest.kind != "none":
        guest.machine.reset()
    guest.machine.mmio.attach(Recorder(0x44), MMIO, 8)
    assert guest.load(MMIO + 4, 4) == 0x44
